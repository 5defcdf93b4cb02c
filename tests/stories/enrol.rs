//! A new node gets its certificate by one line, and by no other.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{AGENT_PORT, Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::{Family::V4, INGRESS, Lab},
    programs::{self, Running},
    wait::wait_for,
};

use crate::expect;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn two_commands_enrol_a_node_and_the_loop_closes() -> Result<()> {
    let (lab, deployment) = world(&Settings::default())?;
    let ended = deployment.enroll(&lab.wire)?;
    ensure!(ended.stdout.contains("n1 is enrolled until"), "{ended:?}");
    let listed = deployment.pki(&["list"])?.stdout;
    let fingerprint = ended.stdout.split("its key is ").nth(1).and_then(|rest| rest.split_whitespace().next());
    ensure!(fingerprint.is_some_and(|it| listed.contains(it)), "the scanner has another key: {listed}\n{ended:?}");

    let _agent = deployment.start_agent(&lab.wire)?;
    deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}

#[test]
fn a_secret_in_a_file_enrols_a_node_unattended() -> Result<()> {
    let (lab, deployment) = world(&Settings { mode: "observe", ..Settings::default() })?;
    let (_scanner, line) = deployment.invite(&lab.wire, &[])?;
    let secret = deployment.path("secret");
    fs::write(&secret, format!("{line}\n"))?;
    for _ in 0..2 {
        let mut command = programs::agent(&lab.wire.node)?;
        command.args(["run", "--config"]).arg(deployment.path("agent.toml")).arg("--enroll-file").arg(&secret);
        let agent = Running::start(&mut command, "agent", &deployment.path(""))?;
        wait_for("the agent to run", PATIENCE, || match agent.log() {
            log if log.contains("agent started") => Ok(()),
            log => Err(log),
        })?;
        ensure!(agent.log().contains("mode=observe"), "{}", agent.log());
        agent.stop()?;
        fs::remove_file(deployment.path("agent.log"))?;
    }
    Ok(())
}

#[test]
fn a_used_line_and_an_expired_one_enrol_nobody() -> Result<()> {
    let (lab, deployment) = world(&Settings::default())?;
    let (scanner, line) = deployment.invite(&lab.wire, &[])?;
    deployment.agent(&lab.wire, &["enroll", &line])?.expect_code(0)?;
    scanner.wait(PATIENCE)?;
    let before = fs::read(deployment.path("state/identity.json"))?;

    let again = deployment.agent(&lab.wire, &["enroll", &line])?.expect_code(2)?;
    ensure!(again.stderr.contains("enrolled already") && again.stderr.contains("hint: --again"), "{again:?}");
    let window = window(&lab, &deployment, &["--again", &line])?;
    let (scanner, _) = deployment.invite(&lab.wire, &[])?;
    wait_for("the used line to be refused", PATIENCE, || match scanner.log() {
        log if log.contains("does not know the secret") => Ok(()),
        log => Err(log),
    })?;
    drop(scanner);

    let registry = deployment.path("pki/registry.json");
    let mut old: serde_json::Value = serde_json::from_slice(&fs::read(&registry)?)?;
    old["invitations"][0]["until"] = "2001-01-01T00:00:00Z".into();
    fs::write(&registry, old.to_string())?;
    let scan = deployment.scanner(&lab.wire, &["run", "--once"])?;
    ensure!(!scan.stderr.contains("it is enrolled"), "an expired line was good: {scan:?}");
    drop(window);
    ensure!(fs::read(deployment.path("state/identity.json"))? == before, "the identity has changed");
    Ok(())
}

#[test]
fn a_foreign_scanner_meets_a_closed_door() -> Result<()> {
    let (lab, deployment) = world(&Settings::default())?;
    let foreign = Deployment::unenrolled(&Settings::default())?;
    let (_, line) = deployment.invite(&lab.wire, &["--detach"])?;
    let _window = window(&lab, &deployment, &[&line])?;
    let (scanner, _) = foreign.invite(&lab.wire, &[])?;
    wait_for("the foreign scanner to be refused", PATIENCE, || match scanner.log() {
        log if log.contains("UnknownCA") || log.contains("alert") => Ok(()),
        log => Err(log),
    })?;
    ensure!(!deployment.path("state/identity.json").exists(), "the node has an identity");
    Ok(())
}

#[test]
fn what_is_no_line_or_for_another_node_is_refused_at_once() -> Result<()> {
    let (lab, deployment) = world(&Settings::default())?;
    let (_, line) = deployment.invite(&lab.wire, &["--detach"])?;
    for (bad, wanted) in [
        ("hello".to_owned(), "does not begin with `deadlight1:`"),
        (line[..line.len() - 3].to_owned(), "its secret is cut off"),
        (line.replace(":n1:", ":n2:"), "the line is for node n2, the configuration says n1"),
    ] {
        let ended = deployment.agent(&lab.wire, &["enroll", &bad])?.expect_code(2)?;
        ensure!(ended.stderr.contains(wanted) && ended.stderr.contains("\nhint: "), "{bad}: {ended:?}");
        ensure!(!ended.stderr.contains(&line[line.len() - 22..]), "the secret is shown: {ended:?}");
    }
    let unknown = deployment.scanner(&lab.wire, &["enroll", "n9"])?.expect_code(2)?;
    ensure!(unknown.stderr.contains("no [[node]] n9"), "{unknown:?}");
    Ok(())
}

#[test]
fn an_agent_that_is_not_enrolled_says_how_to() -> Result<()> {
    let (lab, deployment) = world(&Settings::default())?;
    let ended = deployment.agent(&lab.wire, &["run"])?.expect_code(2)?;
    ensure!(ended.stderr.contains("hint: run `deadlight-scanner enroll NODE`"), "{ended:?}");
    Ok(())
}

fn window(lab: &Lab, deployment: &Deployment, words: &[&str]) -> Result<Running> {
    let mut command = programs::agent(&lab.wire.node)?;
    command.arg("enroll").args(words).arg("--config").arg(deployment.path("agent.toml"));
    let mut window = Running::start(&mut command, "window", &deployment.path(""))?;
    window.wait_ready(PATIENCE, || {
        lab.wire.node.enter(|| Ok(std::net::TcpStream::connect(("127.0.0.1", AGENT_PORT))?)).is_ok()
    })?;
    Ok(window)
}

fn world(settings: &Settings<'_>) -> Result<(Lab, Deployment)> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    Ok((lab, Deployment::unenrolled(settings)?))
}
