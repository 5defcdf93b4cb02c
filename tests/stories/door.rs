//! The agent's own port: for the scanners' addresses alone where the file names them, and for nobody who has no certificate.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer_from},
    deployment::{AGENT_PORT, Deployment, Settings, VANTAGE},
    docker_rules::{Backend, ForwardPolicy, Layout},
    hostile::request,
    lab::{
        Family::{self, V4, V6},
        HOST, Lab,
    },
    order::enforce,
    process::{run, run_with_input},
    programs::Running,
    test_ca::Validity,
    wait::wait_for,
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::expect;

const SCANNERS: &str = "scanners = [\"198.51.100.1\", \"2001:db8:51::1/128\"]";
/// Longer than two rounds of the agent.
const SOON: Duration = Duration::from_secs(15);

type Start = fn(&Deployment, &Lab) -> Result<Running>;

fn start(deployment: &Deployment, lab: &Lab) -> Result<Running> {
    deployment.start_agent(&lab.wire)
}

fn start_without_nftables(deployment: &Deployment, lab: &Lab) -> Result<Running> {
    deployment.start_agent_without_nftables(&lab.wire)
}

#[test]
fn strangers_see_it_filtered_and_scanners_get_in_beside_iptables_nft() -> Result<()> {
    only_scanners_get_in(Backend::Nft, start)
}

#[test]
fn strangers_see_it_filtered_and_scanners_get_in_beside_iptables_legacy() -> Result<()> {
    only_scanners_get_in(Backend::Legacy, start)
}

#[test]
fn strangers_see_it_filtered_and_scanners_get_in_without_nftables() -> Result<()> {
    only_scanners_get_in(Backend::Legacy, start_without_nftables)
}

/// From before the agent listens; to an order, from inside and by loopback it is open; until `revert --all`.
fn only_scanners_get_in(backend: Backend, start: Start) -> Result<()> {
    let (lab, deployment) = world(backend, "enforce")?;
    let before = traces(&lab)?;
    deployment.prepend(SCANNERS)?;
    let agent = never_answered_before(&lab, || start(&deployment, &lab))?;
    expect_shut_to_strangers(&lab)?;
    enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", HOST), (V6, "tcp", HOST)])?;
    expect::closed(&lab.wire, &[(V4, HOST), (V6, HOST)])?;
    expect_shut_to_strangers(&lab)?;
    // An answer of TLS, which has no word for an HTTP request without it.
    expect::tcp(&lab.task, ([172, 18, 0, 1], AGENT_PORT).into(), Answer::Data)?;
    expect::tcp(lab.node(), ([127, 0, 0, 1], AGENT_PORT).into(), Answer::Data)?;

    agent.stop()?;
    let path = if deployment.path("bin").exists() { Some(deployment.path("bin")) } else { None };
    let ask = |words: &[&str]| {
        let mut command = deadlight_tests::programs::agent(lab.node())?;
        if let Some(path) = &path {
            command.env("PATH", format!("{}:{}", path.display(), std::env::var("PATH")?));
        }
        deadlight_tests::programs::finish(command.args(words).arg("--config").arg(deployment.path("agent.toml")))
    };
    let rules = ask(&["rules"])?.stdout;
    ensure!(rules.contains(&format!("dport {AGENT_PORT}")), "{rules}");
    let status = ask(&["status"])?.stdout;
    ensure!(status.contains("198.51.100.1/32"), "{status}");
    ask(&["revert", "--all"])?.expect_code(0)?;
    ensure!(traces(&lab)? == before, "{before:?}\nis now\n{:?}", traces(&lab)?);
    Ok(())
}

#[test]
fn a_family_without_a_scanner_is_shut_to_all() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft, "enforce")?;
    deployment.prepend("scanners = [\"198.51.100.0/31\"]\ntrusted = [\"2001:db8:51::/64\", \"198.51.100.2\"]")?;
    let _agent = deployment.start_agent(&lab.wire)?;
    expect_shut_to_strangers(&lab)?;
    expect::tcp(lab.inet(), V6.node(AGENT_PORT), Answer::Silent)?;
    enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", HOST)])
}

#[test]
fn what_others_do_to_it_is_repaired() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft, "enforce")?;
    deployment.prepend(SCANNERS)?;
    let agent = deployment.start_agent(&lab.wire)?;
    for damage in [
        "flush ruleset\n",
        "delete chain inet deadlight input\n",
        "flush chain inet deadlight input\n",
        "add element inet deadlight scanners4 { 198.51.100.2 }\n",
    ] {
        run_with_input(lab.node().command("nft").args(["-f", "-"]), damage)?;
        repaired(&lab, &agent, damage)?;
    }
    Ok(())
}

#[test]
fn what_others_do_to_it_is_repaired_without_nftables() -> Result<()> {
    let (lab, deployment) = world(Backend::Legacy, "enforce")?;
    deployment.prepend(SCANNERS)?;
    let agent = start_without_nftables(&deployment, &lab)?;
    for damage in ["-F INPUT", "-F DEADLIGHT-DOOR", "-I INPUT -j ACCEPT"] {
        for tool in ["iptables-legacy", "ip6tables-legacy"] {
            run(lab.node().command(tool).args(["--wait", "-t", "mangle"]).args(damage.split(' ')))?;
        }
        repaired(&lab, &agent, damage)?;
    }
    Ok(())
}

#[test]
fn observe_mode_changes_nothing_and_says_so() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft, "observe")?;
    deployment.prepend(SCANNERS)?;
    let before = (lab.saved_rules()?, lab.native_tables()?);
    let agent = deployment.start_agent(&lab.wire)?;
    for family in Family::BOTH {
        let answer = tcp_answer_from(lab.inet(), (family.stranger(), 0).into(), family.node(AGENT_PORT))?;
        ensure!(answer == Answer::Data, "{family}: {answer:?}");
    }
    ensure!((lab.saved_rules()?, lab.native_tables()?) == before, "rules changed");
    ensure!(agent.log().contains("observe mode writes no rule"), "{}", agent.log());
    let status = deployment.agent(&lab.wire, &["status"])?;
    ensure!(status.stdout.contains("does not shut the agent's port yet"), "{status:?}");
    Ok(())
}

#[test]
fn strangers_are_counted_and_never_heard() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft, "enforce")?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let callers = callers(&lab, &deployment)?;
    // One connection looked whether the agent listens; this question is the first that is heard.
    ensure!(callers["proven"] == 1, "{callers}");
    let known = callers["strangers"].as_u64().context("no count")?;
    for family in Family::BOTH {
        for said in
            ["GET /v1/status HTTP/1.1\r\nhost: n1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\u{16}\u{3}\u{1}"]
        {
            let answer = say(&lab, family.node(AGENT_PORT), said.as_bytes())?;
            ensure!(!answer.windows(4).any(|word| word == b"HTTP"), "{said:?} got {answer:?}");
            ensure!(answer.len() <= 7, "more than a TLS alert: {answer:?}");
        }
        let refused = request(lab.inet(), family.node(AGENT_PORT), None, "GET", "/v1/status", "");
        ensure!(refused.is_err(), "{refused:?}");
    }
    let callers = self::callers(&lab, &deployment)?;
    ensure!(callers["proven"] == 2 && callers["strangers"] == known + 8, "{callers}");
    Ok(())
}

fn callers(lab: &Lab, deployment: &Deployment) -> Result<Value> {
    let scanner = deployment.identity(&format!("spiffe://deadlight/scanner/{VANTAGE}"), Validity::Current)?;
    let response = request(lab.inet(), V4.node(AGENT_PORT), Some(scanner), "GET", "/v1/status", "")?;
    let (_, body) = response.text.split_once("\r\n\r\n").context("no body")?;
    let status: Value = serde_json::from_str(body).with_context(|| response.text.clone())?;
    Ok(status["callers"].clone())
}

/// What comes back before the connection is closed.
fn say(lab: &Lab, to: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    lab.inet().enter(|| {
        let mut stream = std::net::TcpStream::connect(to)?;
        // A reset is an end too, and may come before all is said.
        stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write)).ok();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Err(error.into()),
            _ => Ok(answer),
        }
    })
}

/// Starts the agent while a stranger tries to connect, again and again.
fn never_answered_before(lab: &Lab, start: impl FnOnce() -> Result<Running>) -> Result<Running> {
    let ready = &AtomicBool::new(false);
    thread::scope(|scope| {
        let strangers = Family::BOTH.map(|family| scope.spawn(move || tries(lab, family, ready)));
        let agent = start();
        ready.store(true, Ordering::Relaxed);
        let agent = agent?;
        for stranger in strangers {
            let tried = stranger.join().map_err(|_| anyhow::anyhow!("a stranger's thread panicked"))??;
            ensure!(tried > 0, "nobody tried");
        }
        Ok(agent)
    })
}

/// How often a stranger tried to connect; an error when it could.
fn tries(lab: &Lab, family: Family, ready: &AtomicBool) -> Result<u32> {
    lab.inet().enter(|| {
        let mut tried = 0;
        while tried == 0 || !ready.load(Ordering::Relaxed) {
            let socket = Socket::new(Domain::for_address(family.node(AGENT_PORT)), Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((family.stranger(), 0)).into())?;
            let to = family.node(AGENT_PORT).into();
            ensure!(socket.connect_timeout(&to, Duration::from_millis(50)).is_err(), "{family}: connected");
            tried += 1;
        }
        Ok(tried)
    })
}

fn expect_shut_to_strangers(lab: &Lab) -> Result<()> {
    for family in Family::BOTH {
        let answer = tcp_answer_from(lab.inet(), (family.stranger(), 0).into(), family.node(AGENT_PORT))?;
        ensure!(answer == Answer::Silent, "{family}: {answer:?}");
    }
    Ok(())
}

fn repaired(lab: &Lab, agent: &Running, damage: &str) -> Result<()> {
    wait_for(&format!("repair of {damage:?}"), SOON, || match expect_shut_to_strangers(lab) {
        Ok(()) => Ok(()),
        Err(error) => Err(format!("{error:#}\n{}", agent.log())),
    })?;
    for family in Family::BOTH {
        let answer = tcp_answer_from(lab.inet(), (family.scanner(), 0).into(), family.node(AGENT_PORT))?;
        ensure!(answer == Answer::Data, "the scanner gets {answer:?} over {family}");
    }
    Ok(())
}

/// Everything but counters. A table of mangle exists, if only empty, as soon as somebody asks for it.
fn traces(lab: &Lab) -> Result<(String, Vec<String>)> {
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        run(lab.node().command(tool).args(["-t", "mangle", "-S"]))?;
    }
    Ok((lab.saved_rules()?, lab.native_tables()?))
}

fn world(backend: Backend, mode: &str) -> Result<(Lab, Deployment)> {
    let lab = Lab::new(Layout::V26, backend, ForwardPolicy::Drop)?;
    Ok((lab, Deployment::new(&Settings { mode, ..Settings::default() })?))
}
