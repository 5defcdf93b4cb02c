//! Two versions of Deadlight with one deployment: `make compat OLD=REVISION`. The loop itself is told by the stories, with
//! the program of the other version in the place of one of ours.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings, VANTAGE},
    docker_rules::{Backend::Nft, ForwardPolicy::Drop, Layout::V26},
    expect,
    lab::{
        Family::{V4, V6},
        HOST, INGRESS, Lab, RUN,
    },
    postgres::Postgres,
    programs::{Ended, agent, built, finish, old},
};

const AGENT: &str = "deadlight-agent";
const SCANNER: &str = "deadlight-scanner";

#[test]
fn an_agent_goes_on_from_what_the_other_version_kept_both_ways() -> Result<()> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let deployment = Deployment::unenrolled(&Settings::default())?;
    let old_agent = || Ok::<_, anyhow::Error>(lab.node().command(old(AGENT)?));
    let (enroll, line) = deployment.invite(&lab.wire, &[])?;
    let mut enrolled = old_agent()?;
    finish(enrolled.args(["enroll", &line, "--config"]).arg(deployment.path("agent.toml")))?.expect_code(0)?;
    enroll.wait(Duration::from_secs(15))?;
    let first = deployment.start_agent_by(old_agent()?, &lab.wire)?;
    deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    let ledger = || fs::read_to_string(deployment.path("state/ledger.json"));
    let closures = |ledger: &str| ledger.matches("\"origin\"").count();
    let closed = closures(&ledger()?);
    first.stop()?;
    for command in [agent(lab.node())?, old_agent()?, agent(lab.node())?] {
        all_closed(&lab)?;
        let next = deployment.start_agent_by(command, &lab.wire)?;
        all_closed(&lab)?;
        let found = deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
        ensure!(!found.stdout.contains("OPEN "), "it was open in between: {found:?}");
        ensure!(closed >= 3 && closures(&ledger()?) == closed, "{}", ledger()?);
        next.stop()?;
    }
    Ok(())
}

#[test]
fn a_scanner_goes_on_from_the_memory_of_the_other_version() -> Result<()> {
    let (lab, deployment) = world()?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let by_old = |words: &[&str]| scanner(&lab, old(SCANNER)?, &deployment, "scanner.toml", words);
    by_old(&["run", "--once"])?.expect_code(0)?;
    // Before there was a database, nothing of it was kept for others.
    let is_kept = deployment.path("deadlight.db").exists();
    deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    let story = deployment.scanner(&lab.wire, &["history"])?.expect_code(0)?;
    ensure!(story.stdout.contains("resolved: proven") == is_kept, "{story:?}");
    let status = deployment.scanner(&lab.wire, &["status"])?.expect_code(0)?;
    ensure!(status.stdout.contains("Nothing unexpected is open."), "{status:?}");

    // The way back: it works with what is there, or says why not and leaves it whole.
    let back = by_old(&["run", "--once"])?;
    let is_refused = back.code()? == 2 && back.stderr.contains("a newer deadlight-scanner may have written it");
    ensure!(back.code()? == 0 || is_refused, "{back:?}");
    deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    let after = deployment.scanner(&lab.wire, &["history"])?.expect_code(0)?;
    ensure!(after.stdout.starts_with(&story.stdout), "{after:?} does not begin as {story:?}");
    Ok(())
}

/// Their orders name each other; agents of before that are ordered without.
#[test]
fn scanners_that_share_a_node_order_its_old_agent() -> Result<()> {
    let (lab, deployment) = world()?;
    let postgres = Postgres::start()?;
    let url = postgres.database("deadlight")?;
    let config = fs::read_to_string(deployment.path("scanner.toml"))?;
    let other = "office-b";
    let mut issue = Command::new(built(SCANNER)?);
    finish(issue.args(["pki", "issue-scanner", other, "--dir"]).arg(deployment.path("")))?.expect_code(0)?;
    for vantage in [VANTAGE, other] {
        let config = format!("{}\n[store]\nurl = {url:?}\n", config.replace(VANTAGE, vantage));
        fs::write(deployment.path(&format!("{vantage}.toml")), config)?;
    }
    let by =
        |vantage: &str| scanner(&lab, built(SCANNER)?, &deployment, &format!("{vantage}.toml"), &["run", "--once"]);
    // The first one is there to be named by the second, and closes nothing.
    by(other)?.expect_code(1)?;
    let agent = deployment.start_agent_by(lab.node().command(old(AGENT)?), &lab.wire)?;
    let ended = by(VANTAGE)?;
    ensure!(ended.code()? == 0, "{ended:?}\nagent:\n{}", agent.log());
    all_closed(&lab)
}

fn world() -> Result<(Lab, Deployment)> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let deployment = Deployment::new(&Settings::default())?;
    Ok((lab, deployment))
}

fn scanner(lab: &Lab, program: PathBuf, deployment: &Deployment, config: &str, words: &[&str]) -> Result<Ended> {
    finish(lab.inet().command(program).args(words).arg("--config").arg(deployment.path(config)))
}

fn all_closed(lab: &Lab) -> Result<()> {
    let ports = [INGRESS, RUN, HOST];
    expect::closed(&lab.wire, &[V4, V6].map(|family| ports.map(|port| (family, port))).concat())
}
