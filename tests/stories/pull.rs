//! Nodes that do not listen: the agent calls, and the scanner asks over that call.

use std::{
    collections::VecDeque,
    fs,
    net::SocketAddr,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    answer::Answer,
    deployment::{AGENT_PORT, Deployment, NODE, PULL_PORT, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    hostile::request,
    lab::{
        ALLOWED,
        Family::{self, V4, V6},
        HOST, INGRESS, Lab, RUN,
    },
    process::{run, run_with_input},
    programs::Running,
    test_ca::{Identity, TestCa, Validity},
    wait::wait_for,
};
use nix::sys::signal::{Signal, kill};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    expect,
    life::{age, days_ago, expire, identity, loop_closes},
};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_loop_closes_over_a_call_ipv4() -> Result<()> {
    the_loop_closes(V4)
}

#[test]
fn the_loop_closes_over_a_call_ipv6() -> Result<()> {
    the_loop_closes(V6)
}

/// From the enrolment on, nobody on the node listens for us, and no connection to it could be made.
fn the_loop_closes(family: Family) -> Result<()> {
    let (lab, deployment) = world(family, "1-10000")?;
    let others = format!("{{ {ALLOWED}, {INGRESS}, {RUN}, {HOST} }}");
    let shut = format!(
        "table inet shut {{ chain in {{ type filter hook prerouting priority -290; \
         iifname eth0 tcp flags & (syn | ack) == syn tcp dport != {others} drop; }}; }}\n"
    );
    run_with_input(lab.node().command("nft").args(["-f", "-"]), &shut)?;
    let enrolled = deployment.enroll(&lab.wire)?;
    ensure!(enrolled.stdout.contains("n1 is enrolled until"), "{enrolled:?}");
    let agent = deployment.start_caller(&lab.wire, "agent.toml")?;
    let listening = run(lab.node().command("ss").args(["-H", "-l", "-n", "-t", "-u", "-p"]))?;
    ensure!(!listening.contains("deadlight"), "the agent listens: {listening}");

    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?;
    let said = format!("{}\n{}\nagent:\n{}", ended.stdout, ended.stderr, agent.log());
    ensure!(ended.code()? == 0, "exit status {}: {said}", ended.code()?);
    expect::closed(&lab.wire, &[INGRESS, RUN, HOST].map(|port| (family, port)))?;
    expect::allowed_answers(&lab, family)?;
    for port in [AGENT_PORT, PULL_PORT] {
        expect::tcp(lab.inet(), family.node(port), Answer::Silent)?;
    }
    Ok(())
}

#[test]
fn a_call_outlives_restarts_of_either_side() -> Result<()> {
    let (lab, deployment, agent) = enrolled(V6)?;
    for _ in 0..2 {
        loop_closes(&lab, &deployment)?;
    }
    agent.stop()?;
    let agent = deployment.start_caller(&lab.wire, "agent.toml")?;
    loop_closes(&lab, &deployment)?;
    agent.kill()?;
    let _agent = deployment.start_caller(&lab.wire, "agent.toml")?;
    loop_closes(&lab, &deployment)
}

#[test]
fn a_call_that_a_dead_link_broke_is_dialled_anew() -> Result<()> {
    let (lab, deployment, _agent) = enrolled(V4)?;
    let scanner = scanner_with_call(&lab, &deployment)?;
    lab.inet().ip("link set eth0 down")?;
    said(&scanner, 0, "no report, its findings stay open")?;
    let from = scanner.log().len();
    lab.inet().ip("link set eth0 up")?;
    said(&scanner, from, "called")?;
    orders_pass(&scanner)
}

#[test]
fn nobody_but_the_nodes_agent_is_let_in() -> Result<()> {
    let (lab, deployment, _agent) = enrolled(V4)?;
    let scanner = scanner_with_call(&lab, &deployment)?;
    let uri = format!("spiffe://deadlight/agent/{NODE}");
    let ours = |uri: &str, validity| deployment.identity(uri, validity).map(Some);
    for (who, identity) in [
        ("without a certificate", None),
        ("of a foreign CA", Some(TestCa::foreign()?.issue(&uri, Validity::Current)?)),
        ("a scanner", ours("spiffe://deadlight/scanner/office-a", Validity::Current)?),
        ("of a node that does not call", ours("spiffe://deadlight/agent/n2", Validity::Current)?),
        ("long expired", ours(&uri, Validity::Expired)?),
        ("without an identity, and nobody is invited", ours("https://example.net/", Validity::Current)?),
    ] {
        ensure!(call(&lab, identity)?.contains("alert"), "let in: {who}");
    }
    ensure!(!call(&lab, ours(&uri, Validity::Current)?)?.contains("alert"), "the node's own agent is not let in");
    orders_pass(&scanner)?;

    let from = scanner.log().len();
    deployment.pki(&["revoke", NODE])?.expect_code(0)?;
    said(&scanner, from, "its call is refused from now on")?;
    said(&scanner, from, "the node has not called").map(drop)
}

/// A node that was cloned, or whose old call died without a word.
#[test]
fn the_younger_of_two_calls_wins() -> Result<()> {
    let (lab, deployment, older) = enrolled(V4)?;
    let scanner = scanner_with_call(&lab, &deployment)?;
    kill(older.pid(), Signal::SIGSTOP)?;
    run(Command::new("cp").arg("-a").args([deployment.path("state"), deployment.path("clone")]))?;
    let config = fs::read_to_string(deployment.path("agent.toml"))?.replace("/state\"", "/clone\"");
    fs::write(deployment.path("clone.toml"), config)?;
    let _younger = deployment.start_caller(&lab.wire, "clone.toml")?;
    said(&scanner, 0, "called again; the older call is ended")?;
    orders_pass(&scanner)?;
    older.kill()
}

#[test]
#[expect(clippy::print_stdout, reason = "a figure of the story")]
fn a_flood_of_strangers_keeps_neither_an_order_nor_a_call_from_passing() -> Result<()> {
    let (lab, deployment, agent) = enrolled(V4)?;
    let scanner = scanner_with_call(&lab, &deployment)?;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let flood = scope.spawn(|| strangers(&lab, &stop, &count));
        let told: Result<()> = (|| {
            wait_for("a flood that fills the door", PATIENCE, || match count.load(Ordering::Relaxed) {
                many if many > 2_000 => Ok(()),
                few => Err(format!("{few} strangers")),
            })?;
            orders_pass(&scanner)?;
            agent.stop()?;
            let (from, began) = (scanner.log().len(), Instant::now());
            let _agent = deployment.start_caller(&lab.wire, "agent.toml")?;
            said(&scanner, from, "called")?;
            println!("called again {:?} after the start, {} strangers", began.elapsed(), count.load(Ordering::Relaxed));
            orders_pass(&scanner)
        })();
        stop.store(true, Ordering::Relaxed);
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?.and(told)
    })
}

#[test]
fn a_certificate_is_renewed_over_the_call_even_when_it_has_ended() -> Result<()> {
    let (lab, deployment, agent) = enrolled(V4)?;
    let before = identity(&deployment)?;
    age(&deployment, "2001-01-01T00:00:00Z")?;
    loop_closes(&lab, &deployment)?;
    ensure!(identity(&deployment)?["pair"]["key"] != before["pair"]["key"], "the key is the old one");
    ensure!(agent.log().matches("agent started").count() == 1, "{}", agent.log());
    loop_closes(&lab, &deployment)?;

    agent.stop()?;
    expire(&deployment, &days_ago(20))?;
    let _agent = deployment.start_caller(&lab.wire, "agent.toml")?;
    loop_closes(&lab, &deployment)
}

#[test]
fn the_ca_changes_under_a_standing_call() -> Result<()> {
    let (lab, deployment, agent) = enrolled(V4)?;
    for step in ["step 1", "step 2", "step 3"] {
        let rotated = deployment.pki(&["rotate-ca"])?.expect_code(0)?;
        ensure!(rotated.stdout.starts_with(step), "{rotated:?}");
        loop_closes(&lab, &deployment)?;
    }
    ensure!(identity(&deployment)?["trust"]["authorities"].as_array().map(Vec::len) == Some(1), "one CA");
    ensure!(agent.log().matches("agent started").count() == 1, "{}", agent.log());
    agent.stop()?;
    let _agent = deployment.start_caller(&lab.wire, "agent.toml")?;
    loop_closes(&lab, &deployment)
}

#[test]
fn the_daemon_enrols_who_calls_with_a_line_and_no_other() -> Result<()> {
    let (lab, deployment) = world(V4, "8000-8100")?;
    let scanner = deployment.start_scanner(&lab.wire)?;
    let (invitation, line) = deployment.invite(&lab.wire, &[])?;
    said(&invitation, 0, "is in use: the scanner that runs here has to meet n1")?;
    let forged = format!("{}{}", &line[..line.len() - 22], "A".repeat(22));
    let mut command = deadlight_tests::programs::agent(lab.node())?;
    command.args(["enroll", &forged]).arg("--config").arg(deployment.path("agent.toml"));
    let liar = Running::start(&mut command, "liar", &deployment.path(""))?;
    said(&scanner, 0, "does not know the secret")?;
    drop(liar);
    ensure!(!deployment.path("state/identity.json").exists(), "enrolled by a forged line");

    deployment.agent(&lab.wire, &["enroll", &line])?.expect_code(0)?;
    invitation.wait(PATIENCE)?;
    let _agent = deployment.start_caller(&lab.wire, "agent.toml")?;
    said(&scanner, 0, "called").map(drop)
}

#[test]
fn a_node_that_waits_to_be_enrolled_believes_no_foreign_scanner() -> Result<()> {
    let (lab, deployment) = world(V4, "8000-8100")?;
    let (_, line) = deployment.invite(&lab.wire, &["--detach"])?;
    let foreign = Deployment::unenrolled(&Settings { pull: Some(V4), ..Settings::default() })?;
    let (_scanner, _) = foreign.invite(&lab.wire, &[])?;
    let mut command = deadlight_tests::programs::agent(lab.node())?;
    command.args(["enroll", &line]).arg("--config").arg(deployment.path("agent.toml"));
    let node = Running::start(&mut command, "node", &deployment.path(""))?;
    said(&node, 0, "UnknownIssuer; calling again and again")?;
    ensure!(!deployment.path("state/identity.json").exists(), "the node has an identity");
    Ok(())
}

fn world(family: Family, sweep: &str) -> Result<(Lab, Deployment)> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let settings = Settings { sweep, families: &[family], pull: Some(family), allow: "80/tcp", ..Settings::default() };
    Ok((lab, Deployment::unenrolled(&settings)?))
}

fn enrolled(family: Family) -> Result<(Lab, Deployment, Running)> {
    let (lab, deployment) = world(family, "8000-8100")?;
    deployment.enroll(&lab.wire)?;
    let agent = deployment.start_caller(&lab.wire, "agent.toml")?;
    Ok((lab, deployment, agent))
}

/// The scanner's daemon, round after round, once the node has called it.
fn scanner_with_call(lab: &Lab, deployment: &Deployment) -> Result<Running> {
    let file = deployment.path("scanner.toml");
    let often = fs::read_to_string(&file)?.replace("[sweep]", "[sweep]\nevery = \"10s\"");
    fs::write(&file, often)?;
    let scanner = deployment.start_scanner(&lab.wire)?;
    said(&scanner, 0, "called")?;
    Ok(scanner)
}

/// Waits until the program has said `words` behind byte `from` of its log; what it said up to then.
fn said(program: &Running, from: usize, words: &str) -> Result<String> {
    wait_for(words, 2 * PATIENCE, || {
        let log = program.log();
        match log.get(from..).unwrap_or_default() {
            news if news.contains(words) => Ok(news.to_owned()),
            _ => Err(log),
        }
    })
}

/// Waits for a round that begins now, whose order must have been answered.
fn orders_pass(scanner: &Running) -> Result<()> {
    let from = scanner.log().len();
    let begun = from + said(scanner, from, "SWEEP")?.rfind("SWEEP").context("a sweep")?;
    let round = said(scanner, begun, "RESULT")?;
    ensure!(!round.contains("no report"), "{round}");
    ensure!(round.contains("nothing unexpected is open") || round.contains("0 still open"), "{round}");
    Ok(())
}

/// What becomes of a caller with this certificate.
fn call(lab: &Lab, identity: Option<Identity>) -> Result<String> {
    let error = request(lab.node(), scanner_port(), identity, "GET", "/", "").err().context("it was answered")?;
    Ok(format!("{error:#}"))
}

fn scanner_port() -> SocketAddr {
    (V4.scanner(), PULL_PORT).into()
}

/// Connections from one stranger's address that say nothing, the next as soon as the last is there.
fn strangers(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
    lab.inet().enter(|| {
        let mut held = VecDeque::new();
        while !stop.load(Ordering::Relaxed) {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&SocketAddr::from((V4.stranger(), 0)).into())?;
            if socket.connect_timeout(&scanner_port().into(), Duration::from_secs(1)).is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
                held.push_back(socket);
            }
            if held.len() > 600 {
                held.pop_front();
            }
        }
        Ok(())
    })
}
