//! Between the agent and Docker's socket stands a process that passes the agent's questions and nothing else.

use std::{
    fs::{self, Permissions},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    fake_docker::FakeDocker,
    lab::{Family::V4, INGRESS, Lab},
    order,
    programs::{Running, built, finish},
    scratch,
    wait::wait_for,
};
use serde_json::json;
use tempfile::TempDir;

use crate::expect;

#[test]
fn the_agent_learns_what_it_needs_and_closes() -> Result<()> {
    let gate = Gate::open()?;
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let deployment = Deployment::new(&Settings { docker_socket: &gate.socket(), ..Settings::default() })?;
    let explained = deployment.agent(&lab.wire, &["explain", "8080/tcp"])?.expect_code(0)?;
    ensure!(explained.stdout.contains("monitoring_stats"), "{explained:?}\n{}", gate.process.log());
    let _agent = deployment.start_agent(&lab.wire)?;
    let response = order::send(&deployment, &lab.wire, &order::order(1, &[(V4, "tcp", INGRESS)]))?;
    ensure!(response.text.contains("\"enforced\"") && response.text.contains("monitoring_stats"), "{response:?}");
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}

#[test]
fn nobody_gets_anything_else_from_it() -> Result<()> {
    let gate = Gate::open()?;
    for path in ["info", "networks", "services"] {
        ensure!(gate.status(&["-X", "GET"], path)? == "200", "{path} does not pass");
        ensure!(gate.status(&["-X", "POST"], path)? == "403", "POST {path} passes");
    }
    for path in ["swarm/unlockkey", "containers/1/archive?path=/", "../networks", "/networks", "v1.41/networks"] {
        ensure!(gate.status(&["--path-as-is"], path)? == "403", "{path} passes");
    }
    let upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: tcp"];
    ensure!(gate.status(&upgrade, "networks")? == "403", "an upgrade passes");
    Ok(())
}

/// Even where the file of the socket lets everybody in.
#[test]
fn strangers_of_this_machine_are_sent_away() -> Result<()> {
    let gate = Gate::open()?;
    fs::set_permissions(gate.directory.path(), Permissions::from_mode(0o755))?;
    fs::set_permissions(gate.socket(), Permissions::from_mode(0o666))?;
    let ended = finish(gate.curl(&["setpriv", "--reuid=65534", "--clear-groups", "curl"]).arg("http://docker/info"))?;
    ensure!(ended.code()? != 0 && ended.stdout.is_empty(), "{ended:?}");
    wait_for("the gate to say so", Duration::from_secs(5), || match gate.process.log() {
        log if log.contains("refused: neither root nor the owner") => Ok(()),
        log => Err(log),
    })
}

#[test]
fn without_a_socket_to_serve_it_says_what_to_do() -> Result<()> {
    let ended = finish(Command::new(built("deadlight-agent")?).arg("docker-gate"))?.expect_code(2)?;
    ensure!(ended.stderr.contains("hint: systemctl enable --now deadlight-docker.socket"), "{ended:?}");
    Ok(())
}

struct Gate {
    process: Running,
    directory: TempDir,
    _docker: FakeDocker,
}

impl Gate {
    /// A gate before an engine with one service.
    fn open() -> Result<Self> {
        let directory = scratch::directory()?;
        let docker = directory.path().join("docker.sock");
        let _docker = FakeDocker::serving(&docker, engine())?;
        let listener = UnixListener::bind(socket(directory.path()))?;
        let mut command = Command::new(built("deadlight-agent")?);
        command.arg("docker-gate").arg("--docker-socket").arg(docker);
        let process = Running::start_on(&mut command, Stdio::from(OwnedFd::from(listener)), "gate", directory.path())?;
        Ok(Self { process, directory, _docker })
    }

    fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    fn curl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["--silent", "--unix-socket"]).arg(self.socket());
        command
    }

    /// The status of the answer to `curl WORDS… http://docker/PATH`.
    fn status(&self, words: &[&str], path: &str) -> Result<String> {
        let mut command = self.curl(&["curl"]);
        command.args(words).args(["--output", "/dev/null", "--write-out", "%{http_code}"]);
        Ok(finish(command.arg(format!("http://docker/{path}")))?.expect_code(0)?.stdout)
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("gate.sock")
}

pub(crate) fn engine() -> std::collections::BTreeMap<&'static str, serde_json::Value> {
    let service = json!({
        "ID": "s1",
        "Spec": { "Name": "monitoring_stats", "Labels": { "com.docker.stack.namespace": "monitoring" } },
        "Endpoint": { "Ports": [{ "Protocol": "tcp", "PublishedPort": INGRESS, "PublishMode": "ingress" }] },
    });
    [
        ("/info", json!({})),
        ("/networks", json!([])),
        ("/containers/json", json!([])),
        ("/services", json!([service])),
        ("/tasks", json!([])),
    ]
    .into()
}
