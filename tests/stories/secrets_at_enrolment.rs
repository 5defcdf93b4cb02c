//! What is secret at an enrolment, the line's secret and the node's new key, is shown by neither side, however it ends.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, NODE, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::Lab,
    programs::{self, Running, built, finish},
    secret::{Secret, Seen},
    wait::wait_for,
};

use crate::secrets::{ALL, sealed};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_good_one_prints_the_line_once_and_the_key_never() -> Result<()> {
    let world = World::new()?;
    let World { lab, deployment } = &world;
    let [line_file, identity] = ["line", "state/identity.json"].map(|name| deployment.path(name));

    // Unattended: nobody waits with the scanner, and the node finds the line in a file.
    let mut command = world.scanner(&["enroll", NODE, "--detach"])?;
    let ended = finish(command.arg("--line-file").arg(&line_file))?.expect_code(0)?;
    let line = fs::read_to_string(&line_file)?.trim_end().to_owned();
    ensure!(ended.stdout.is_empty() && fs::metadata(&line_file)?.mode() & 0o777 == 0o600, "{ended:?}");
    let first = Secret::of_line(&line)?;
    let mut seen = Seen::none_of(vec![first.clone().at_home_in(line_file.clone())]);
    seen.text(&ended.stderr)?;
    let mut command = world.agent(&["enroll", "--file"])?;
    command.arg(&line_file);
    let window = deployment.open_window_by(command, &lab.wire)?;
    sealed(&window)?;
    for what in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{what}", window.pid()))?;
        seen.text(&String::from_utf8_lossy(&bytes))?;
    }
    let met = finish(&mut world.scanner(&["run", "--once"])?)?;
    ensure!(met.stderr.contains("it is enrolled"), "{met:?}");
    let said = window.wait(PATIENCE)?;
    ensure!(said.contains("n1 is enrolled until") && said.contains("DEBUG"), "the log is not whole: {said}");
    let replaced = key(deployment)?;
    seen.secrets.push(replaced.clone().at_home_in(identity.clone()));
    seen.text(&met.stderr)?;
    seen.files(&deployment.path(""))?;
    fs::remove_file(&line_file)?;

    // By hand: the scanner waits, and the line is an argument.
    let (scanner, line) = world.invite("second")?;
    sealed(&scanner)?;
    seen.ended(world.agent(&["enroll", "--again", &line])?, 0)?;
    let printed = scanner.wait(PATIENCE)?;
    ensure!(printed == format!("{line}\n"), "standard output is more than the line: {printed}");
    let second = Secret::of_line(&line)?.at_home_in(deployment.path("second.log"));
    seen.secrets = vec![first, replaced, second, key(deployment)?.at_home_in(identity)];

    let agent = deployment.start_agent_by(world.traced(programs::agent(lab.node())?), &lab.wire)?;
    for words in [["run", "--once"].as_slice(), &["check-config"]] {
        seen.ended(world.scanner(words)?, 0)?;
    }
    for words in [["status"].as_slice(), &["rules"], &["check-config"]] {
        seen.ended(world.agent(words)?, 0)?;
    }
    for words in [["list"].as_slice(), &["revoke", "agent/n1"]] {
        seen.text(&format!("{:?}", deployment.pki(words)?))?;
    }
    agent.stop()?;
    seen.files(&deployment.path(""))
}

#[test]
fn a_failed_one_shows_nothing_either() -> Result<()> {
    let world = World::new()?;
    let World { lab, deployment } = &world;
    let mut outputs = Vec::new();

    let line = finish(&mut world.scanner(&["enroll", NODE, "--detach"])?)?.expect_code(0)?.stdout;
    let old = line.trim_end();
    for bad in [&old[..old.len() - 1], &old[1..], &old.replace(":n1:", ":n2:"), &format!("{old}:x"), &format!("{old}~")]
    {
        let ended = finish(&mut world.agent(&["enroll", bad])?)?.expect_code(2)?;
        outputs.extend([ended.stdout, ended.stderr]);
    }

    let window = deployment.open_window_by(world.agent(&["enroll", old])?, &lab.wire)?;
    let (scanner, other) = world.invite("other")?;
    let errors = deployment.path("other.errors");
    wait_for("the other line to be told", PATIENCE, || match fs::read_to_string(&errors) {
        Ok(log) if log.contains("was given another enrolment line") => Ok(()),
        log => Err(format!("{log:?}")),
    })?;
    outputs.push(window.log());
    window.stop()?;
    scanner.stop()?;

    let (scanner, lost) = world.invite("lost")?;
    fs::create_dir_all(deployment.path("state"))?;
    let mut command = world.traced(programs::agent_apart(lab.node(), programs::FULL)?);
    command.env("STATE", deployment.path("state")).args(["enroll", &lost, "--config"]);
    let ended = finish(command.arg(deployment.path("agent.toml")))?.expect_code(2)?;
    ensure!(ended.stderr.contains("failed to keep the certificate"), "{ended:?}");
    outputs.extend([ended.stdout, ended.stderr]);
    scanner.wait(PATIENCE)?;
    for name in ["other", "lost"] {
        outputs.push(fs::read_to_string(deployment.path(&format!("{name}.errors")))?);
    }
    ensure!(outputs.iter().filter(|output| output.contains("request refused")).count() == 2, "the logs are not whole");

    let mut secrets = vec![Secret::of_line(old)?];
    for (name, line) in [("other", &other), ("lost", &lost)] {
        let home = deployment.path(&format!("{name}.log"));
        ensure!(fs::read_to_string(&home)? == format!("{line}\n"), "standard output is more than the line");
        secrets.push(Secret::of_line(line)?.at_home_in(home));
    }
    let mut seen = Seen::none_of(secrets);
    seen.files(&deployment.path(""))?;
    // Nobody knows the keys that were made for nothing.
    seen.secrets.push(Secret::any_key()?);
    outputs.iter().try_for_each(|output| seen.text(output))
}

/// A scanner and a node that is not enrolled, with everything logged.
struct World {
    lab: Lab,
    deployment: Deployment,
}

type Command = std::process::Command;

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
        Ok(Self { lab, deployment: Deployment::unenrolled(&Settings { sweep: "1-100,8080", ..Settings::default() })? })
    }

    fn traced(&self, mut command: Command) -> Command {
        command.env(ALL.0, ALL.1).env("RUST_BACKTRACE", "full");
        command
    }

    fn agent(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.traced(programs::agent(self.lab.node())?);
        command.arg("--config").arg(self.deployment.path("agent.toml")).args(words);
        Ok(command)
    }

    fn scanner(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.traced(programs::scanner(self.lab.inet())?);
        command.args(words).arg("--config").arg(self.deployment.path("scanner.toml"));
        Ok(command)
    }

    /// Starts `enroll`, its standard output going to `NAME.log` and the rest to `NAME.errors`; the line.
    fn invite(&self, name: &str) -> Result<(Running, String)> {
        let mut command = self.traced(self.lab.inet().command("sh"));
        command.env("ERRORS", self.deployment.path(&format!("{name}.errors")));
        command.args(["-c", "exec \"$0\" \"$@\" 2>\"$ERRORS\""]).arg(built("deadlight-scanner")?);
        command.args(["enroll", NODE, "--config"]).arg(self.deployment.path("scanner.toml"));
        let scanner = Running::start(&mut command, name, &self.deployment.path(""))?;
        let line = wait_for("the enrolment line", PATIENCE, || match scanner.log() {
            log if log.ends_with('\n') => Ok(log.trim_end().to_owned()),
            log => Err(log),
        })?;
        Ok((scanner, line))
    }
}

/// The node's key of now.
fn key(deployment: &Deployment) -> Result<Secret> {
    let document: serde_json::Value = serde_json::from_slice(&fs::read(deployment.path("state/identity.json"))?)?;
    // In the file its lines end with a backslash and an n.
    Secret::of_key("the node's key", document["pair"]["key"].as_str().context("no key")?)
}
