//! Coming from what others do about Docker's ports: `doctor` knows them, the agent takes over beside them, they can go
//! afterwards without a port opening meanwhile, and all of it can be undone. The steps are run as `docker/docs/migration.md`
//! prints them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use deadlight_tests::{
    answer::Answer,
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy::Drop,
        Layout::V28,
        ingress_accepts, save,
    },
    dockerd::Dockerd,
    fix_script,
    lab::{ALLOWED, Family, INGRESS, Lab, RUN, Wire},
    process::run,
};

use crate::{docs::page::Page, expect};

const SHUT: [(Family, u16); 4] = [(Family::V4, INGRESS), (Family::V6, INGRESS), (Family::V4, RUN), (Family::V6, RUN)];

#[test]
fn from_the_fix_script_nft() -> Result<()> {
    from_the_fix_script(Nft)
}

#[test]
fn from_the_fix_script_legacy() -> Result<()> {
    from_the_fix_script(Legacy)
}

fn from_the_fix_script(backend: Backend) -> Result<()> {
    let wire = Wire::new()?;
    let mut dockerd = Dockerd::start(&wire, backend, Drop)?;
    dockerd.create_service("stats", INGRESS)?;
    dockerd.create_service("web", ALLOWED)?;
    dockerd.run_published("run", RUN)?;
    fix_script::run_once(backend, |tool| wire.node.command(tool))?;
    expect::answers(&wire, Family::V4, INGRESS, Answer::Silent)?;
    // What it leaves open.
    for (family, port) in [(Family::V6, INGRESS), (Family::V4, RUN), (Family::V6, RUN)] {
        expect::answers(&wire, family, port, if port == RUN { Answer::Data } else { Answer::OpenNoData })?;
    }

    let docker_socket = dockerd.socket();
    let deployment = Deployment::node_only(&Settings { docker_socket: &docker_socket, ..Settings::default() })?;
    ensure!(note(&deployment, &wire)?.starts_with("2 rules of the known fix script stand"), "doctor knows it");
    let (before, steps) = (save(&wire.node, backend)?, steps("The fix script")?);
    let [close, remove] = &steps[..] else { bail!("{steps:#?}") };
    take_over(&deployment, &wire, close)?;
    deployment.agent(&wire, &["revert", "--all"])?.expect_code(0)?;
    ensure!(save(&wire.node, backend)? == before, "undone, and the script's rules are as they were");
    take_over(&deployment, &wire, close)?;

    // What it leaves behind goes, and Docker writes its own rules anew.
    for step in remove {
        match &step[..] {
            "systemctl restart docker" => dockerd.restart()?,
            step => run_step(&deployment, &wire, &step.replacen("iptables", &backend.tool("iptables", ""), 1))?,
        }
    }
    expect::answers(&wire, Family::V4, ALLOWED, Answer::Data)?;
    expect::closed(&wire, &SHUT)?;
    take_over(&deployment, &wire, close)?;
    for port in [INGRESS, ALLOWED] {
        let accepts = ingress_accepts(&wire.node, backend, port)?;
        ensure!(!accepts.iter().any(|rule| rule.contains("172.16.0.0/12")), "{accepts:#?}");
    }
    ensure!(note(&deployment, &wire)?.is_empty(), "nothing of the script stands");
    Ok(())
}

#[test]
fn from_ufw_docker_nft() -> Result<()> {
    from_ufw_docker(Nft)
}

#[test]
fn from_ufw_docker_legacy() -> Result<()> {
    from_ufw_docker(Legacy)
}

fn from_ufw_docker(backend: Backend) -> Result<()> {
    let mut lab = Lab::new(V28, backend, Drop)?;
    let etc = lab.wire.node.furnish(backend)?;
    let after_rules = etc.join("ufw/after.rules");
    let original = fs::read_to_string(&after_rules)?;
    fs::write(&after_rules, format!("{original}{}", ufw_docker()))?;
    accept_what_is_not_docker(&etc.join("default/ufw"))?;
    ufw(&lab, "--force enable")?;
    ufw(&lab, "route allow proto tcp from any to any port 80")?;
    expect::tcp(lab.inet(), Family::V4.node(INGRESS), Answer::Silent)?;
    // It goes by the container's port, and this one's is 80; the mesh's socket for IPv6 is the node's own, which is open here.
    expect::tcp(lab.inet(), Family::V4.node(RUN), Answer::Data)?;
    expect::tcp(lab.inet(), Family::V6.node(INGRESS), Answer::OpenNoData)?;

    let deployment = Deployment::node_only(&Settings::default())?;
    ensure!(note(&deployment, &lab.wire)?.contains("rules of ufw-docker stand"), "doctor knows it");
    let (before, close) = (lab.saved_rules()?, steps("The fix script")?.swap_remove(0));
    take_over(&deployment, &lab.wire, &close)?;
    deployment.agent(&lab.wire, &["revert", "--all"])?.expect_code(0)?;
    ensure!(lab.saved_rules()? == before, "undone, and ufw-docker's rules are as they were");
    take_over(&deployment, &lab.wire, &close)?;
    ufw(&lab, "reload")?;
    expect::closed(&lab.wire, &SHUT)?;

    // As long as both are there, a port has to be allowed by both.
    let allow = ["harden", "--allow", "80/tcp,8080/tcp", "--once"];
    deployment.agent(&lab.wire, &allow)?.expect_code(0)?;
    expect::tcp(lab.inet(), Family::V4.node(INGRESS), Answer::Silent)?;
    take_over(&deployment, &lab.wire, &close)?;

    // Without its block ufw no longer writes the rules, and leaves those that stand.
    fs::write(&after_rules, original)?;
    ufw(&lab, "route delete allow proto tcp from any to any port 80")?;
    let remove = steps("ufw-docker")?.pop().context("steps")?;
    ensure!(remove[0] == "ufw reload", "{remove:?}");
    run_step(&deployment, &lab.wire, &remove[0])?;
    ensure!(note(&deployment, &lab.wire)?.contains("rules of ufw-docker stand"), "a reload is not enough");
    remove[1..].iter().try_for_each(|step| run_step(&deployment, &lab.wire, step))?;
    expect::closed(&lab.wire, &SHUT)?;
    take_over(&deployment, &lab.wire, &close)?;
    ensure!(note(&deployment, &lab.wire)?.is_empty(), "nothing of ufw-docker stands");
    Ok(())
}

/// What was published is shut but for the site, whatever others have put before Docker's rules.
fn take_over(deployment: &Deployment, wire: &Wire, steps: &[String]) -> Result<()> {
    steps.iter().try_for_each(|step| run_step(deployment, wire, step))?;
    expect::closed(wire, &SHUT)?;
    expect::tcp(&wire.inet, Family::V4.node(ALLOWED), Answer::Data)
}

/// The blocks of commands of a section of the page, line by line.
fn steps(section: &str) -> Result<Vec<Vec<String>>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/docs/migration.md");
    let page = Page::read("migration.md", &fs::read_to_string(path)?);
    let blocks = page.blocks.iter().filter(|block| block.section == section);
    Ok(blocks.map(|block| block.text.lines().map(str::to_owned).collect()).collect())
}

/// Runs a step on the node; whatever `doctor` finds is no failure.
fn run_step(deployment: &Deployment, wire: &Wire, step: &str) -> Result<()> {
    let words: Vec<&str> = step.split_whitespace().collect();
    match &words[..] {
        ["deadlight-agent", "doctor"] => deployment.agent(wire, &["doctor"]).map(drop),
        ["deadlight-agent", words @ ..] => deployment.agent(wire, words)?.expect_code(0).map(drop),
        [program, words @ ..] => run(wire.node.command(program).args(words)).map(drop),
        [] => Ok(()),
    }
}

/// What `doctor` says of rules in DOCKER-USER.
fn note(deployment: &Deployment, wire: &Wire) -> Result<String> {
    let ended = deployment.agent(wire, &["doctor", "--output", "json"])?;
    let said: serde_json::Value = serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
    let found = said["found"].as_array().with_context(|| said.to_string())?;
    let note = found.iter().find(|found| found["subject"] == "DOCKER-USER");
    Ok(note.and_then(|note| note["text"].as_str()).unwrap_or_default().to_owned())
}

/// A block for ufw's after.rules that does what ufw-docker's documentation says of its own.
fn ufw_docker() -> String {
    const INNER: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
    let from = INNER.map(|net| format!("-A DOCKER-USER -s {net} -j RETURN\n")).concat();
    let to =
        INNER.map(|net| format!("-A DOCKER-USER -d {net} -m conntrack --ctstate NEW -j ufw-docker-logging-deny\n"));
    format!(
        "*filter\n:ufw-user-forward - [0:0]\n:ufw-docker-logging-deny - [0:0]\n:DOCKER-USER - [0:0]\n\
         -A DOCKER-USER -j ufw-user-forward\n\
         -A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
         {from}{}-A DOCKER-USER -j RETURN\n-A ufw-docker-logging-deny -j DROP\nCOMMIT\n",
        to.concat()
    )
}

/// The node's own processes and other forwarding are not the subject here.
fn accept_what_is_not_docker(defaults: &Path) -> Result<()> {
    let text = fs::read_to_string(defaults)?;
    let kept = text.lines().filter(|line| {
        !["DEFAULT_INPUT_POLICY=", "MANAGE_BUILTINS=", "IPT_SYSCTL="].iter().any(|key| line.starts_with(key))
    });
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    Ok(fs::write(defaults, kept + "DEFAULT_INPUT_POLICY=\"ACCEPT\"\nMANAGE_BUILTINS=no\nIPT_SYSCTL=\n")?)
}

fn ufw(lab: &Lab, words: &str) -> Result<()> {
    run(lab.node().command("ufw").args(words.split(' '))).map(drop)
}
