//! A new node gets its certificate by one line, and by no other.

use std::{fs, os::unix::fs::symlink, time::Duration};

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::{
        Family::{self, V4},
        INGRESS, Lab,
    },
    programs::{self, Ended, Running, finish},
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
fn what_is_said_at_each_start_is_done_once() -> Result<()> {
    let (lab, deployment) = world(&Settings::default())?;
    let keys = || -> Result<Vec<_>> {
        let files = ["ca.key", "scanner-office-a.key"].map(|name| deployment.path("pki").join(name));
        files.iter().map(|file| Ok(fs::read(file)?)).collect()
    };
    let before = keys()?;
    for words in [["init"].as_slice(), &["issue-scanner", "office-a"]] {
        deployment.pki(words)?.expect_code(2)?;
        let said = deployment.pki(&[words, &["--if-needed"]].concat())?.expect_code(0)?.stdout;
        ensure!(said.contains("is there already"), "{said}");
    }
    ensure!(keys()? == before, "other keys");
    // Half an identity, as of one that was killed between the two, is not told as whole.
    let (certificate, aside) = (deployment.path("pki/ca.crt"), deployment.path("pki/aside"));
    fs::rename(&certificate, &aside)?;
    deployment.pki(&["init", "--if-needed"])?.expect_code(2)?;
    fs::rename(&aside, &certificate)?;

    let file = deployment.path("line");
    let say = || -> Result<Ended> {
        let mut command = programs::scanner(&lab.wire.inet)?;
        command.args(["enroll", "n1", "--detach", "--if-needed", "--config"]).arg(deployment.path("scanner.toml"));
        finish(command.arg("--line-file").arg(&file))
    };
    let enroll = || -> Result<String> {
        say()?.expect_code(0)?;
        Ok(fs::read_to_string(&file)?)
    };
    // A link, as /dev/stdout is one, is not replaced by a secret.
    symlink("/dev/null", &file)?;
    let said = say()?.expect_code(2)?.stderr;
    ensure!(said.contains("no plain file") && fs::symlink_metadata(&file)?.is_symlink(), "{said}");
    fs::remove_file(&file)?;
    let first = enroll()?;
    let second = enroll()?;
    ensure!(first != second, "nobody has enrolled, and the line is the old one");
    let window = deployment.open_window(&lab.wire, &[second.trim_end()])?;
    deployment.scanner(&lab.wire, &["run", "--once"])?;
    window.wait(PATIENCE)?;
    ensure!(enroll()? == second, "a line for a node that is enrolled");
    // Whom somebody has shut out is not invited by a script.
    deployment.pki(&["revoke", "n1"])?.expect_code(0)?;
    let said = say()?.expect_code(2)?.stderr;
    ensure!(said.contains("the certificate of n1 was revoked") && said.contains("hint: "), "{said}");
    ensure!(fs::read_to_string(&file)? == second, "a line for a node that is revoked");
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
    let window = deployment.open_window(&lab.wire, &["--again", &line])?;
    let (scanner, _) = deployment.invite(&lab.wire, &[])?;
    wait_for("the used line to be refused", PATIENCE, || match scanner.log() {
        log if log.contains("does not know the secret") => Ok(()),
        log => Err(log),
    })?;
    drop(scanner);

    age_invitation(&deployment)?;
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
    let _window = deployment.open_window(&lab.wire, &[&line])?;
    let (scanner, _) = foreign.invite(&lab.wire, &[])?;
    told_once(&scanner, "who is there trusts another CA", "`deadlight-agent enroll` that waits there", || None)?;
    ensure!(!deployment.path("state/identity.json").exists(), "the node has an identity");
    Ok(())
}

#[test]
fn a_window_of_another_line_is_told_at_once_and_the_right_one_is_waited_for() -> Result<()> {
    let (lab, deployment) = world(&Settings::default())?;
    let (_, old) = deployment.invite(&lab.wire, &["--detach"])?;
    let wrong = format!("{}{}", &old[..old.len() - 22], "A".repeat(22));
    for theirs in [old, wrong] {
        let window = deployment.open_window(&lab.wire, &[&theirs])?;
        let (scanner, line) = deployment.invite(&lab.wire, &[])?;
        let log = || Some(window.log());
        told_once(&scanner, "was given another enrolment line", "hint: on n1 end the `deadlight-agent enroll`", log)?;
        ensure!(!deployment.path("state/identity.json").exists(), "the node has an identity");
        window.stop()?;
        deployment.agent(&lab.wire, &["enroll", &line])?.expect_code(0)?;
        wait_for("the scanner to see it", PATIENCE, || match scanner.log() {
            log if log.contains("n1 is enrolled; the fingerprint") => Ok(()),
            log => Err(log),
        })?;
        fs::remove_dir_all(deployment.path("state"))?;
    }
    Ok(())
}

#[test]
fn an_agent_that_is_enrolled_already_is_told_at_once_and_the_line_ends_in_time() -> Result<()> {
    let (lab, deployment) = world(&Settings::default())?;
    deployment.enroll(&lab.wire)?;
    let agent = deployment.start_agent(&lab.wire)?;
    let (scanner, _) = deployment.invite(&lab.wire, &[])?;
    let log = || Some(agent.log());
    told_once(&scanner, "nobody waits there to be enrolled", "on n1 `systemctl stop deadlight-agent`", log)?;
    age_invitation(&deployment)?;
    let ended = scanner.wait(PATIENCE)?;
    ensure!(ended.contains("has expired") && ended.contains("hint: deadlight-scanner enroll n1 prints"), "{ended}");

    let (scanner, line) = deployment.invite(&lab.wire, &[])?;
    agent.stop()?;
    deployment.agent(&lab.wire, &["enroll", "--again", &line])?.expect_code(0)?;
    let log = scanner.wait(PATIENCE)?;
    ensure!(log.contains("n1 is enrolled; the fingerprint"), "{log}");
    Ok(())
}

#[test]
fn a_node_that_cannot_keep_its_identity_is_not_called_enrolled() -> Result<()> {
    cannot_keep(None)
}

#[test]
fn a_node_that_calls_and_cannot_keep_its_identity_is_not_called_enrolled() -> Result<()> {
    cannot_keep(Some(V4))
}

fn cannot_keep(pull: Option<Family>) -> Result<()> {
    let (lab, deployment) = world(&Settings { pull, ..Settings::default() })?;
    let state = deployment.path("state");
    fs::create_dir_all(&state)?;
    for (fault, why) in [(programs::FULL, "No space left"), (programs::READ_ONLY, "Read-only file system")] {
        let (scanner, line) = deployment.invite(&lab.wire, &[])?;
        let mut command = programs::agent_apart(lab.node(), fault)?;
        command.env("STATE", &state).args(["enroll", &line, "--config"]).arg(deployment.path("agent.toml"));
        let node = finish(&mut command)?.expect_code(2)?;
        ensure!(node.stderr.contains(why) && node.stderr.contains("hint: this node is not enrolled"), "{node:?}");
        if pull.is_some() {
            // The certificate lies ready as long as the line is good.
            age_invitation(&deployment)?;
        }
        let log = scanner.wait(PATIENCE)?;
        let told = if pull.is_some() { "is not known to have arrived" } else { "has not confirmed" };
        ensure!(log.contains(told) && log.contains(why) && log.contains("deadlight-scanner enroll n1 prints"), "{log}");
        ensure!(!log.contains("is enrolled; the fingerprint"), "{log}");
    }
    deployment.enroll(&lab.wire).map(drop)
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

/// Of a scanner that goes on asking, told on its standard error once. `asked` is who logs each time that it was asked.
fn told_once(scanner: &Running, what: &str, hint: &str, asked: impl Fn() -> Option<String>) -> Result<()> {
    wait_for("the obstacle to be told", PATIENCE, || match scanner.log() {
        log if log.contains(what) && log.contains(hint) => Ok(()),
        log => Err(log),
    })?;
    let before = refusals(asked());
    wait_for("more attempts", PATIENCE, || match refusals(asked()) {
        now if asked().is_none() || now >= before + 3 => Ok(()),
        now => Err(format!("{before}, then {now}: {}", scanner.log())),
    })?;
    let log = scanner.log();
    ensure!(log.matches("hint: ").count() == 1 && log.matches(what).count() == 1, "{log}");
    Ok(())
}

fn refusals(log: Option<String>) -> usize {
    log.unwrap_or_default().matches("request refused").count()
}

/// The line that is good now is from long ago.
fn age_invitation(deployment: &Deployment) -> Result<()> {
    let registry = deployment.path("pki/registry.json");
    let mut old: serde_json::Value = serde_json::from_slice(&fs::read(&registry)?)?;
    old["invitations"][0]["until"] = (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1)).to_string().into();
    // Somebody may be reading it.
    let aged = registry.with_extension("aged");
    fs::copy(&registry, &aged)?;
    fs::write(&aged, old.to_string())?;
    Ok(fs::rename(&aged, &registry)?)
}

fn world(settings: &Settings<'_>) -> Result<(Lab, Deployment)> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    Ok((lab, Deployment::unenrolled(settings)?))
}
