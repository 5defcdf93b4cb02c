//! The systemd units of `docker/systemd/`, started by a real systemd, with all that they forbid.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    deployment::{AGENT_PORT, Deployment, NODE, Settings, VANTAGE},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy::{self, Accept, Drop},
        Layout::{self, V20_10, V26, V28},
    },
    fake_docker::FakeDocker,
    lab::{
        Family::{self, V4, V6},
        HOST, INGRESS, Lab, RUN,
    },
    order,
    process::{run, run_with_input},
    programs::{Running, finish},
    scratch,
    session::Session,
    systemd::{self, Systemd},
    wait::wait_for,
};
use tempfile::TempDir;

use crate::{docker_gate::engine, expect};

const AGENT: &str = "deadlight-agent.service";
const SCANNER: &str = "deadlight-scanner.service";
const GATE: &str = "deadlight-docker.service";
const HELPERS: [&str; 2] = ["deadlight-docker.socket", "deadlight-listeners.socket"];
const SOON: Duration = Duration::from_secs(30);

#[test]
fn each_is_exposed_little() -> Result<()> {
    let entries = fs::read_dir(systemd::source())?.collect::<std::io::Result<Vec<_>>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let services: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|it| it == "service")).collect();
    ensure!(services.len() == 6, "{services:?}");
    for service in services {
        // As `systemd-analyze` counts: 2.0.
        let words = ["security", "--offline=true", "--no-pager", "--threshold=20"];
        let ended = finish(Command::new("systemd-analyze").args(words).arg(&service))?;
        ensure!(ended.code()? == 0, "{}\n{}", ended.stdout, ended.stderr);
        println!("{}", ended.stdout.lines().last().unwrap_or_default());
    }
    Ok(())
}

#[test]
fn the_loop_closes_nft() -> Result<()> {
    the_loop_closes(V26, Nft, Drop)
}

#[test]
fn the_loop_closes_legacy() -> Result<()> {
    the_loop_closes(V28, Legacy, Accept)
}

/// Scanner and agent as services; the scanner's own words say that the closure is proven.
fn the_loop_closes(layout: Layout, backend: Backend, forward: ForwardPolicy) -> Result<()> {
    let mut place = Place::new(layout, backend, forward)?;
    let etc = place.lab.wire.inet.furnish(backend)?;
    place.install_scanner(&etc)?;
    let node = place.boot()?;
    let outside = Systemd::boot(&place.lab.wire.inet, &etc)?;
    place.start_agent(&node)?;
    outside.start_unit(SCANNER)?;
    let ports = [INGRESS, RUN, HOST];
    wait_for("proof", SOON, || {
        let said = outside.log();
        let is_proven =
            |port: &u16| said.lines().any(|line| line.contains("PROOF") && line.contains(&port.to_string()));
        if ports.iter().all(is_proven) { Ok(()) } else { Err(format!("{said}\nagent:\n{}", node.log())) }
    })?;
    for family in Family::BOTH {
        expect::closed(&place.lab.wire, &ports.map(|port| (family, port)))?;
        expect::allowed_answers(&place.lab, family)?;
    }
    expect::reachable_inside(&place.lab)?;
    expect::narrow(place.lab.node(), backend).map_err(anyhow::Error::msg)?;
    for (systemd, unit, user) in [(&node, AGENT, "deadlight"), (&outside, SCANNER, "deadlight-scanner")] {
        ensure!(systemd.owner_of(unit)? == user, "{unit} runs as {}", systemd.owner_of(unit)?);
    }
    outside.systemctl(&["reload", SCANNER])?.expect_code(0)?;
    wait_for("reload", SOON, || {
        let said = outside.log();
        if said.contains("the configuration is read again") { Ok(()) } else { Err(said) }
    })?;
    ensure!(!outside.log().contains("by connect"), "the scanner sends no packets: {}", outside.log());
    Ok(())
}

#[test]
fn causes_and_protected_ports_are_known_by_helpers() -> Result<()> {
    let place = Place::new(V26, Nft, Drop)?;
    let node = place.boot()?;
    let sshd = place.directory.path().join("sshd");
    fs::copy("/usr/bin/socat", &sshd)?;
    let mut command = node.command(&sshd.to_string_lossy())?;
    let _sshd = Running::start(command.args(["TCP6-LISTEN:2222,fork", "PIPE"]), "sshd", place.directory.path())?;
    expect::answers(&place.lab.wire, V4, 2222, Answer::Data)?;
    place.start_agent(&node)?;
    let asked = order::order(1, &[(V4, "tcp", INGRESS), (V4, "tcp", 2222)]);
    let response = order::send(&place.deployment, &place.lab.wire, &asked)?;
    for wanted in ["monitoring_stats", "\"enforced\"", "sshd listens on it"] {
        ensure!(response.text.contains(wanted), "{wanted}: {response:?}\n{}", node.log());
    }
    expect::closed(&place.lab.wire, &[(V4, INGRESS)])?;
    expect::answers(&place.lab.wire, V4, 2222, Answer::Data)
}

#[test]
fn the_guard_stands_whatever_others_do() -> Result<()> {
    let place = Place::new(V26, Nft, Drop)?;
    let node = place.boot()?;
    place.start_agent(&node)?;
    order::enforce(&place.deployment, &place.lab.wire, 1, &[(V4, "tcp", HOST)])?;
    for damage in [
        "flush ruleset\n",
        "delete table inet deadlight\n",
        "delete element inet deadlight closed_tcp { 9100 }\n",
        "insert rule inet deadlight prerouting accept\n",
    ] {
        run_with_input(place.lab.node().command("nft").args(["-f", "-"]), damage)?;
        place.closed_soon(&node)?;
    }
    let before = node.property(AGENT, "MainPID")?;
    node.systemctl(&["kill", "--signal=KILL", AGENT])?.expect_code(0)?;
    run(place.lab.node().command("nft").args(["flush", "ruleset"]))?;
    place.closed_soon(&node)?;
    ensure!(node.property(AGENT, "MainPID")? != before, "it was not killed");
    expect::closed(&place.lab.wire, &[(V6, HOST)])
}

/// A helper that is killed is started by the next question.
#[test]
fn a_killed_helper_is_no_loss() -> Result<()> {
    let place = Place::new(V26, Nft, Drop)?;
    let node = place.boot()?;
    place.start_agent(&node)?;
    for (sequence, port) in [(1, HOST), (2, INGRESS), (3, RUN)] {
        order::enforce(&place.deployment, &place.lab.wire, sequence, &[(V4, "tcp", port)])?;
        for socket in HELPERS {
            let service = socket.replace(".socket", ".service");
            node.systemctl(&["kill", "--signal=KILL", &service])?;
        }
    }
    Ok(())
}

/// Nor does what stands fall because one is away; only nothing new is closed, for it might be sshd's.
#[test]
fn without_helpers_nothing_opens() -> Result<()> {
    let place = Place::new(V26, Nft, Drop)?;
    let node = place.boot()?;
    place.start_agent(&node)?;
    order::enforce(&place.deployment, &place.lab.wire, 1, &[(V4, "tcp", HOST)])?;
    for socket in HELPERS {
        node.systemctl(&["stop", socket, &socket.replace(".socket", ".service")])?.expect_code(0)?;
    }
    run(place.lab.node().command("nft").args(["flush", "ruleset"]))?;
    place.closed_soon(&node)?;
    let response = order::send(&place.deployment, &place.lab.wire, &order::order(2, &[(V4, "tcp", RUN)]))?;
    ensure!(response.status == 500 && response.text.contains("who holds the listening sockets"), "{response:?}");
    for socket in HELPERS {
        node.start_unit(socket)?;
    }
    order::enforce(&place.deployment, &place.lab.wire, 3, &[(V4, "tcp", RUN)])
}

/// Root's commands and the service share a ledger: what one writes, the other reads and replaces.
#[test]
fn root_and_the_service_share_a_ledger() -> Result<()> {
    let place = Place::new(V26, Nft, Drop)?;
    let node = place.boot()?;
    let agent = |words: &[&str]| finish(node.command("deadlight-agent")?.args(words));
    agent(&["harden", "--allow=80/tcp", "--once"])?.expect_code(0)?;
    place.start_agent(&node)?;
    order::enforce(&place.deployment, &place.lab.wire, 1, &[(V4, "tcp", HOST)])?;
    agent(&["revert", "9100/tcp"])?.expect_code(0)?;
    expect::tcp(place.lab.inet(), V4.node(HOST), Answer::Data)?;
    order::enforce(&place.deployment, &place.lab.wire, 2, &[(V4, "tcp", HOST)])?;
    agent(&["status"])?.expect_code(0)?;
    let files = finish(node.command("find")?.args(["/var/lib/deadlight", "!", "-user", "deadlight"]))?;
    ensure!(files.stdout.is_empty(), "not the service's: {files:?}");
    Ok(())
}

/// What root enrols, before the service has ever run, is the service's.
#[test]
fn root_enrols_and_the_service_runs() -> Result<()> {
    let settings = Settings { sweep: "8000-8100", ..Settings::default() };
    let place = Place::of(Deployment::unenrolled(&settings)?, V26, Nft, Drop)?;
    let files = place.etc.join("deadlight");
    fs::create_dir(&files)?;
    fs::write(files.join("agent.toml"), "mode = \"enforce\"\n")?;
    let node = place.boot()?;
    let (scanner, line) = place.deployment.invite(&place.lab.wire, &[])?;
    finish(node.command("deadlight-agent")?.args(["enroll", &line]))?.expect_code(0)?;
    scanner.wait(SOON)?;
    place.start_agent(&node)?;
    place.deployment.scanner(&place.lab.wire, &["run", "--once"])?.expect_code(0)?;
    expect::closed(&place.lab.wire, &[(V4, INGRESS)])
}

#[test]
fn without_a_scanner_everything_published_is_closed_at_boot_too_nft() -> Result<()> {
    without_a_scanner(V26, Nft)
}

#[test]
fn without_a_scanner_everything_published_is_closed_at_boot_too_legacy() -> Result<()> {
    without_a_scanner(V20_10, Legacy)
}

fn without_a_scanner(layout: Layout, backend: Backend) -> Result<()> {
    const HARDEN: &str = "deadlight-harden.service";
    let place = Place::new(layout, backend, Drop)?;
    let node = place.boot()?;
    let session = Session::tcp(place.lab.inet(), V6.node(RUN), &place.lab.proxy)?;
    node.start_unit(HARDEN)?;
    let closed = [(V4, INGRESS), (V6, INGRESS), (V4, RUN), (V6, RUN)];
    wait_for("the ports to close", SOON, || {
        expect::closed(&place.lab.wire, &closed).map_err(|error| format!("{error:#}\n{}", node.log()))
    })?;
    session.ensure_silent(Instant::now(), Duration::from_secs(1))?;
    node.systemctl(&["stop", HARDEN])?.expect_code(0)?;
    run(place.lab.node().command("nft").args(["delete", "table", "inet", "deadlight"]))?;
    node.start_unit("deadlight-restore.service")?;
    expect::closed(&place.lab.wire, &closed)
}

/// Its unit lets it, and the doctor, run by root beside it, finds its files and rules.
#[test]
fn the_service_serves_its_metrics_and_the_doctor_finds_it_well() -> Result<()> {
    let place = Place::new(V26, Nft, Drop)?;
    let file = place.etc.join("deadlight/agent.toml");
    let config = fs::read_to_string(&file)?;
    fs::write(&file, format!("{config}[metrics]\nlisten = \"127.0.0.1:9473\"\n"))?;
    let node = place.boot()?;
    for socket in HELPERS {
        node.start_unit(socket)?;
    }
    place.start_agent(&node)?;
    let curl = ["-sS", "--noproxy", "*", "--retry", "9", "--retry-connrefused", "http://127.0.0.1:9473/metrics"];
    let metrics = finish(node.command("curl")?.args(curl))?.expect_code(0)?.stdout;
    for wanted in ["deadlight_agent_in_force 1\n", "deadlight_agent_problems 0\n"] {
        ensure!(metrics.contains(wanted), "{metrics}\n{}", node.log());
    }
    let doctor = finish(node.command("deadlight-agent")?.arg("doctor"))?.expect_code(0)?;
    ensure!(doctor.stdout.contains("ok rules: in force"), "{doctor:?}");
    Ok(())
}

/// With what its own unit leaves it, by every way there is.
#[test]
fn the_agent_cannot_open_dockers_socket_nor_read_what_is_not_its_own() -> Result<()> {
    let place = Place::new(V26, Nft, Drop)?;
    let node = place.boot()?;
    node.start_unit(HELPERS[0])?;
    let ask =
        "curl --silent --show-error --max-time 5 --output /dev/null --write-out 'status %{http_code}\\n' --unix-socket";
    let script = format!(
        "for path in /run/docker.sock /var/run/docker.sock /proc/1/root/run/docker.sock; do \
         {ask} $path http://docker/networks 2>&1; done\n\
         cat /etc/shadow 2>&1\nls /proc/1/fd /proc/1/root 2>&1\ntouch /etc/deadlight/x 2>&1 && rm /etc/deadlight/x\n\
         echo gate; {ask} /run/deadlight/docker.sock http://docker/networks 2>&1\n\
         {ask} /run/deadlight/docker.sock http://docker/containers/1/archive?path=/ 2>&1\n"
    );
    let by_root = finish(node.command("sh")?.args(["-c", &script]))?;
    ensure!(by_root.stdout.matches("status 200").count() == 4, "the ways are there: {by_root:?}");
    let said = node.run_as(AGENT, &script)?;
    let (own, gate) = said.split_once("gate\n").unwrap_or_default();
    ensure!(!own.contains("status 200") && own.matches("status 000").count() == 3, "{said}");
    for (denied, count) in [("Permission denied", 3), ("Read-only file system", 1)] {
        ensure!(own.matches(denied).count() >= count, "{denied}: {said}");
    }
    ensure!(gate == "status 200\nstatus 403\n", "{said}");
    Ok(())
}

#[test]
fn what_holds_dockers_socket_cannot_reach_any_network() -> Result<()> {
    let place = Place::new(V26, Nft, Drop)?;
    let node = place.boot()?;
    let script = "for to in 127.0.0.1 ::1 198.51.100.1; do bash -c \"exec 3<>/dev/tcp/$to/7443\" 2>&1; done\n\
                  cat /etc/deadlight/agent.key 2>&1\ncat /proc/self/net/dev | grep -c eth0\n\
                  curl --silent --output /dev/null --write-out 'docker %{http_code}\\n' \
                  --unix-socket /run/docker.sock http://docker/networks\n";
    let unbound = finish(node.command("sh")?.args(["-c", script]))?;
    ensure!(!unbound.stdout.contains("Address family") && unbound.stdout.contains("\n1\n"), "{unbound:?}");
    let said = node.run_as(GATE, script)?;
    ensure!(said.matches("/7443: Address family not supported by protocol").count() == 3, "{said}");
    ensure!(said.contains("Permission denied") && said.contains("\n0\n"), "{said}");
    ensure!(said.ends_with("docker 200\n"), "it is the one that reaches Docker: {said}");
    Ok(())
}

/// A node with Docker's rules and an engine that answers, and what is installed on it.
struct Place {
    lab: Lab,
    etc: PathBuf,
    deployment: Deployment,
    directory: TempDir,
    _docker: FakeDocker,
}

impl Place {
    fn new(layout: Layout, backend: Backend, forward: ForwardPolicy) -> Result<Self> {
        let place = Self::of(Deployment::new(&Settings::default())?, layout, backend, forward)?;
        let agent = format!("node = {NODE:?}\nmode = \"enforce\"\n{}", tls("deadlight", "agent"));
        place.install(&place.etc, "deadlight", &format!("agent-{NODE}"), "agent", &agent)?;
        Ok(place)
    }

    fn of(deployment: Deployment, layout: Layout, backend: Backend, forward: ForwardPolicy) -> Result<Self> {
        let mut lab = Lab::new(layout, backend, forward)?;
        let etc = lab.wire.node.furnish(backend)?;
        let directory = scratch::directory()?;
        let _docker = FakeDocker::serving(&directory.path().join("docker.sock"), engine())?;
        Ok(Self { lab, etc, deployment, directory, _docker })
    }

    /// The node's systemd, with Docker's socket where it always is, and the helpers' sockets waiting.
    fn boot(&self) -> Result<Systemd<'_>> {
        let node = Systemd::boot(&self.lab.wire.node, &self.etc)?;
        let fake = format!("UNIX-CONNECT:{}", self.directory.path().join("docker.sock").display());
        let docker = "[Service]\nExecStart=socat UNIX-LISTEN:/run/docker.sock,fork,mode=660,group=docker ";
        node.add_unit("docker.service", &format!("{docker}{fake}\n"))?;
        node.start_unit("docker.service")?;
        Ok(node)
    }

    /// Starts the agent's unit and waits until it listens.
    fn start_agent(&self, node: &Systemd<'_>) -> Result<()> {
        node.start_unit(AGENT)?;
        wait_for("the agent", SOON, || match tcp_answer(self.lab.inet(), V4.node(AGENT_PORT)) {
            Ok(Answer::OpenNoData | Answer::Data) => Ok(()),
            other => Err(format!("{other:?}\n{}", node.log())),
        })
    }

    fn install_scanner(&self, etc: &Path) -> Result<()> {
        let text = fs::read_to_string(self.deployment.path("scanner.toml"))?;
        let (before_tls, _) = text.split_once("[tls]").unwrap_or_default();
        let store = "[store]\nurl = \"sqlite:/var/lib/deadlight-scanner/deadlight.db\"\n";
        let config = format!("{before_tls}{store}{}", tls("deadlight-scanner", "scanner"));
        self.install(etc, "deadlight-scanner", &format!("scanner-{VANTAGE}"), "scanner", &config)
    }

    /// As README says: certificate and key under short names, all of it the service's user's.
    fn install(&self, etc: &Path, user: &str, identity: &str, name: &str, config: &str) -> Result<()> {
        let files = etc.join(user);
        fs::create_dir(&files)?;
        fs::copy(self.deployment.path("ca.crt"), files.join("ca.crt"))?;
        for kind in ["crt", "key"] {
            let from = self.deployment.path(&format!("{identity}.{kind}"));
            fs::copy(from, files.join(format!("{name}.{kind}")))?;
        }
        fs::write(files.join(format!("{name}.toml")), config)?;
        systemd::give_to(etc, user, &files)
    }

    fn closed_soon(&self, node: &Systemd<'_>) -> Result<()> {
        wait_for("the port to be closed", SOON, || match tcp_answer(self.lab.inet(), V4.node(HOST)) {
            Ok(Answer::Silent) => Ok(()),
            other => Err(format!("{other:?}\n{}", node.log())),
        })
    }
}

fn tls(directory: &str, name: &str) -> String {
    let file = |name: String| format!("/etc/{directory}/{name}");
    let [ca, certificate, key] = ["ca.crt".to_owned(), format!("{name}.crt"), format!("{name}.key")].map(file);
    format!("[tls]\nca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n")
}
