//! How an agent is: in numbers for Prometheus, and as its doctor says.

use std::{
    fs::Permissions,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    deployment::{Deployment, Settings, VANTAGE},
    docker_rules::{
        Backend::{Legacy, Nft},
        ForwardPolicy::Drop,
        Layout::{V20_10, V26},
    },
    fake_docker::FakeDocker,
    lab::{
        Family::{V4, V6},
        INGRESS, Lab,
    },
    observability, order,
    process::run,
    programs::{built, finish},
    scratch,
    wait::wait_for,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::expect;

const METRICS: &str = "127.0.0.1:9473";
/// Longer than an answer is given again.
const SOON: Duration = Duration::from_secs(15);
/// More than the agent serves at a time.
const HUNG: usize = 20;

#[test]
fn prometheus_takes_the_agents_metrics() -> Result<()> {
    let (lab, deployment) = measured()?;
    let _agent = deployment.start_agent(&lab.wire)?;
    until(&lab, &["in_force 1", "closed_ports 0", "callers_proven_total 0", "problems 1"])?;
    order::enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", INGRESS)])?;
    ensure!(tcp_answer(lab.inet(), V4.node(INGRESS))? == Answer::Silent, "it is open");
    let order = format!("last_order_timestamp_seconds{{scanner=\"{VANTAGE}\"}} ");
    let text = until(&lab, &["in_force 1", "closed_ports 1", "callers_proven_total 1", &order])?;
    ensure!(value(&text, "guard_dropped_packets_total{port=\"8080\",protocol=\"tcp\"}")? > 0.0, "{text}");
    ensure!(value(&text, "owned_rules")? > 10.0, "{text}");
    let days = (value(&text, "certificate_expiry_timestamp_seconds")? - now()) / 86_400.0;
    ensure!((1.0..4_000.0).contains(&days), "{days} days");
    observability::check("agent", &text)
}

/// Whoever reads the numbers takes nothing from the next report.
#[test]
fn drift_is_counted_and_still_reported() -> Result<()> {
    let (lab, deployment) = measured()?;
    let _agent = deployment.start_agent(&lab.wire)?;
    order::enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", INGRESS)])?;
    run(lab.node().command("nft").args(["delete", "table", "inet", "deadlight"]))?;
    for _ in 0..2 {
        until(&lab, &["drift_repairs_total 1", "drift_unreported 1", "in_force 1"])?;
    }
    let report = order::send(&deployment, &lab.wire, &order::order(2, &[(V4, "tcp", INGRESS)]))?;
    ensure!(report.text.contains("rules were lost and put back"), "{report:?}");
    until(&lab, &["drift_repairs_total 1", "drift_unreported 0"]).map(drop)
}

#[test]
fn readers_who_hang_hinder_nothing() -> Result<()> {
    let (lab, deployment) = measured()?;
    let agent = deployment.start_agent(&lab.wire)?;
    until(&lab, &["in_force 1"])?;
    let hung = lab.node().enter(|| {
        let address: SocketAddr = METRICS.parse()?;
        (0..HUNG).map(|_| Ok(TcpStream::connect(address)?)).collect::<Result<Vec<_>>>()
    })?;
    order::enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", INGRESS), (V6, "tcp", INGRESS)])?;
    expect::closed(&lab.wire, &[(V4, INGRESS)])?;
    // They are sent away in their turn, and others are heard.
    wait_for("an answer", Duration::from_secs(60), || match scrape(&lab, &["--max-time", "5"]) {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}\n{}", agent.log())),
    })?;
    drop(hung);
    ensure!(agent.stop()?.success(), "it did not end well");
    Ok(())
}

#[test]
fn the_metrics_are_for_this_host_alone() -> Result<()> {
    let (lab, deployment) = measured()?;
    let agent = deployment.start_agent(&lab.wire)?;
    until(&lab, &["in_force 1"])?;
    let (status, text) = scrape(&lab, &["-H", "host: rebound.example"])?;
    ensure!(status == 421 && !text.contains("deadlight"), "{status} {text}");
    ensure!(scrape(&lab, &["-X", "POST"])?.0 == 405, "POST is answered");
    let outside = tcp_answer(lab.inet(), V4.node(9473))?;
    ensure!(outside == Answer::Refused, "{outside:?}");
    agent.stop()?;

    let config = std::fs::read_to_string(deployment.path("agent.toml"))?;
    for address in ["0.0.0.0:9473", "198.51.100.11:9473", "[::]:9473", "localhost:9473"] {
        std::fs::write(deployment.path("agent.toml"), config.replace(METRICS, address))?;
        let ended = deployment.agent(&lab.wire, &["check-config"])?.expect_code(2)?;
        ensure!(ended.stderr.contains("`listen`: ") && ended.stderr.contains("[metrics]"), "{ended:?}");
        ensure!(ended.stderr.contains("is no loopback address"), "{ended:?}");
    }
    Ok(())
}

#[test]
fn the_doctor_finds_a_good_node_well_and_changes_nothing() -> Result<()> {
    let (lab, deployment, _docker, _directory) = with_docker()?;
    let agent = deployment.start_agent(&lab.wire)?;
    order::enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", INGRESS)])?;
    let all = || -> Result<_> {
        Ok((lab.saved_rules()?, lab.native_tables()?, std::fs::read(deployment.path("state/ledger.json"))?))
    };
    run(lab.node().command("iptables").args(["-I", "DOCKER-USER", "-p", "tcp", "--dport", "443", "-j", "ACCEPT"]))?;
    let before = all()?;
    let doctor = deployment.agent(&lab.wire, &["doctor"])?.expect_code(0)?;
    for wanted in [
        "ok rights: ",
        "ok programs: nftables v",
        "ok guard: ",
        "ok docker's rules: they are in iptables-nft",
        "ok DOCKER-USER: 1 rules of the known fix script",
        "ok docker: engine 28.5.1, in no swarm",
        "ok outside: eth0",
        "ok certificate: until ",
        "ok state: ",
        "ok rules: in force",
        "?? door: everybody reaches the agent's port",
    ] {
        ensure!(doctor.stdout.contains(wanted), "no {wanted:?} in\n{}", doctor.stdout);
    }
    ensure!(!doctor.stdout.contains("!!") && !doctor.stdout.contains('\u{1b}'), "{}", doctor.stdout);
    ensure!(all()? == before, "something was changed");

    let json = deployment.agent(&lab.wire, &["doctor", "--output", "json"])?.expect_code(0)?;
    let json: Value = serde_json::from_str(&json.stdout)?;
    ensure!(json["schema"] == "deadlight.doctor/v1" && json["found"][0]["grade"] == "well", "{json}");

    agent.stop()?;
    run(lab.node().command("nft").args(["delete", "table", "inet", "deadlight"]))?;
    let doctor = deployment.agent(&lab.wire, &["doctor"])?.expect_code(1)?;
    ensure!(doctor.stdout.contains("!! rules: the kernel does not hold the rules"), "{}", doctor.stdout);
    ensure!(doctor.stdout.contains("   hint: deadlight-agent plan"), "{}", doctor.stdout);
    Ok(())
}

#[test]
fn the_doctor_says_what_is_missing() -> Result<()> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let deployment = Deployment::unenrolled(&Settings::default())?;
    let doctor = deployment.agent(&lab.wire, &["doctor"])?.expect_code(1)?;
    for wanted in [
        "!! docker: failed to reach Docker at /nonexistent/docker.sock",
        "?? certificate: none: ",
        "ok state: ",
        "is not there yet and can be made",
    ] {
        ensure!(doctor.stdout.contains(wanted), "no {wanted:?} in\n{}", doctor.stdout);
    }
    ensure!(!deployment.path("state").exists(), "it was made");
    deployment.prepend("mod = \"enforce\"")?;
    let ended = deployment.agent(&lab.wire, &["doctor"])?.expect_code(2)?;
    ensure!(ended.stderr.contains("did you mean `mode`"), "{ended:?}");
    Ok(())
}

/// Where `iptables` is the other flavour, dockerd writes that one after its next start.
#[test]
fn the_doctor_knows_where_dockers_rules_are() -> Result<()> {
    let lab = Lab::new(V20_10, Legacy, Drop)?;
    let deployment = Deployment::node_only(&Settings::default())?;
    let doctor = || deployment.agent(&lab.wire, &["doctor"])?.expect_code(1);
    let wanted = "?? docker's rules: they are in iptables-legacy, and `iptables` is iptables-nft";
    let said = doctor()?.stdout;
    ensure!(said.contains(wanted) && said.contains("iptables-save v"), "{said}");
    run(lab.node().command("iptables-nft").args(["-N", "DOCKER"]))?;
    let said = doctor()?.stdout;
    ensure!(said.contains("!! docker's rules: Docker's chains are in iptables-nft and"), "{said}");
    ensure!(said.contains("update-alternatives --display iptables") && !said.contains("!! rules"), "{said}");
    Ok(())
}

#[test]
fn the_doctor_needs_no_rights() -> Result<()> {
    let (lab, deployment, _docker, _directory) = with_docker()?;
    let agent = deployment.start_agent(&lab.wire)?;
    order::enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", INGRESS)])?;
    let open = scratch::directory()?;
    for (from, to) in [(deployment.path("agent.toml"), "agent.toml"), (built("deadlight-agent")?, "deadlight-agent")] {
        std::fs::copy(from, open.path().join(to))?;
    }
    std::fs::set_permissions(open.path(), Permissions::from_mode(0o755))?;
    std::fs::set_permissions(open.path().join("agent.toml"), Permissions::from_mode(0o644))?;
    let mut command = lab.node().command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(open.path().join("deadlight-agent"));
    let doctor = finish(command.args(["doctor", "--config"]).arg(open.path().join("agent.toml")))?.expect_code(1)?;
    for wanted in
        ["!! rights: without CAP_NET_ADMIN", "!! listeners: ", "!! docker: ", "!! certificate: ", "!! state: "]
    {
        ensure!(doctor.stdout.contains(wanted), "no {wanted:?} in\n{}", doctor.stdout);
    }
    ensure!(doctor.stdout.contains("ok outside: eth0") && !doctor.stdout.contains("rules: "), "{}", doctor.stdout);
    ensure!(doctor.stderr.is_empty(), "{}", doctor.stderr);
    agent.stop().map(drop)
}

/// A node beside an engine that is in no swarm.
fn with_docker() -> Result<(Lab, Deployment, FakeDocker, TempDir)> {
    let directory = scratch::directory()?;
    let socket = directory.path().join("docker.sock");
    let info = json!({ "ServerVersion": "28.5.1", "Swarm": { "LocalNodeState": "inactive" } });
    let docker = FakeDocker::serving(&socket, [("/info", info), ("/networks", json!([]))].into())?;
    let lab = Lab::new(V26, Nft, Drop)?;
    let deployment = Deployment::new(&Settings { docker_socket: &socket, ..Settings::default() })?;
    Ok((lab, deployment, docker, directory))
}

/// A node with an agent whose numbers can be read.
fn measured() -> Result<(Lab, Deployment)> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let deployment = Deployment::new(&Settings::default())?;
    let file = deployment.path("agent.toml");
    let config = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{config}[metrics]\nlisten = {METRICS:?}\n"))?;
    Ok((lab, deployment))
}

/// The metrics, once they have all of `lines`.
fn until(lab: &Lab, lines: &[&str]) -> Result<String> {
    wait_for(&format!("{lines:?}"), SOON, || match scrape(lab, &[]) {
        Ok((200, text)) if lines.iter().all(|line| text.contains(&format!("\ndeadlight_agent_{line}"))) => Ok(text),
        other => Err(format!("{other:?}")),
    })
}

fn value(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("deadlight_agent_")?.strip_prefix(name));
    Ok(line.with_context(|| format!("no {name} in {text}"))?.trim().parse()?)
}

fn now() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

fn scrape(lab: &Lab, words: &[&str]) -> Result<(u16, String)> {
    let mut curl = lab.node().command("curl");
    curl.args(["-sS", "--noproxy", "*", "-w", "\n%{http_code}"]).args(words).arg(format!("http://{METRICS}/metrics"));
    let said = run(&mut curl)?;
    let (text, status) = said.trim_end().rsplit_once('\n').context("a status")?;
    Ok((status.parse()?, text.to_owned()))
}
