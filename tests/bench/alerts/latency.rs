//! From the first answer that a quick sweep gets of a new exposure to the alert, the closed port and the proof, beside an
//! Alertmanager with its defaults that is told at the same moment.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use deadlight_scanner::store::Past;
use deadlight_shared::FindingStatus;
use deadlight_tests::{
    alertmanager::Alertmanager,
    capture::Capture,
    deployment::{Deployment, Settings},
    lab::{Family, Wire},
    netns::Netns,
    process::run,
    server::Server,
    syn_watch::SynWatch,
    wait::wait_for,
};
use jiff::Timestamp;
use pnet::packet::tcp::TcpFlags;
use serde_json::json;

use super::{
    FIRST_PORT, MINUTE, ask,
    sink::{Behaviour, Message, Sink},
    start,
};
use crate::{percentile, repetitions, row};

const ROUNDS: usize = 20;
/// In both families.
const PORTS_A_ROUND: u16 = 5;
/// A webhook rests so long after a message, and a little more.
const REST: Duration = Duration::from_secs(31);

/// Of the watches: deprecated, so that no scanner has it for its own.
const WATCHES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 3))];

/// When a port answered.
#[derive(Debug, Clone, Copy)]
struct Answered {
    /// The scanner, first.
    first: Option<Timestamp>,
    /// Anybody, last.
    last: Timestamp,
}

type Answers = Arc<Mutex<BTreeMap<SocketAddr, Answered>>>;

pub(super) fn measure() -> Result<()> {
    let rounds = repetitions(ROUNDS)?;
    let ports = PORTS_A_ROUND * u16::try_from(rounds)?;
    let wire = Wire::new()?;
    wire.inet.ip("addr add 2001:db8:51::3/64 dev eth0 nodad preferred_lft 0")?;
    let _site = Family::BOTH.map(|family| Server::tcp(&wire.node, family.any(80)));
    let sweep = format!("80,7443,{FIRST_PORT}-{}", FIRST_PORT + ports - 1);
    let deployment = Deployment::new(&Settings { mode: "observe", sweep: &sweep, ..Settings::default() })?;
    deployment.prepend("max_new_per_hour = 100000")?;
    all_are_known(&deployment, &wire, FIRST_PORT..FIRST_PORT + ports)?;

    let webhook = wire.inet.enter(|| Sink::start(Behaviour::Moody))?;
    let peers = Sink::start(Behaviour::Moody)?;
    let alertmanager = Alertmanager::telling(&peers.url())?;
    replace(&deployment, "agent.toml", "\"observe\"", "\"enforce\"")?;
    replace(&deployment, "scanner.toml", "[sweep]\n", "[sweep]\nevery = \"24h\"\nquick = \"1s\"\n")?;
    replace(&deployment, "scanner.toml", "[store]", &format!("{}[store]", webhook.block("webhook")))?;
    let answers = Answers::default();
    let _capture = watch(&wire.inet, &answers)?;
    let agent = deployment.start_agent(&wire)?;
    let program = start(&wire.inet, &deployment.path("scanner.toml"), &deployment.path(""))?;
    wait_for("the first full sweep", MINUTE, || {
        program.log().contains("RESULT").then_some(()).ok_or_else(|| program.log())
    })?;

    let mut told_peer = Vec::new();
    for round in 0..rounds {
        let first = FIRST_PORT + PORTS_A_ROUND * u16::try_from(round)?;
        let exposed = open(&wire.node, first..first + PORTS_A_ROUND)?;
        let watch = |family: Family| SynWatch::start(&wire.inet, WATCHES[family as usize], family.node(first));
        let _watches = [watch(Family::V4)?, watch(Family::V6)?];
        let at = wait_for("an answer", MINUTE, || {
            let answered = seen(&answers).get(&Family::V4.node(first)).and_then(|answered| answered.first);
            answered.ok_or_else(|| program.log())
        })?;
        told_peer.push((format!("round{round}"), at));
        post(&alertmanager, round)?;
        wait_for("the end of the round", 2 * MINUTE, || {
            let ends = count(&webhook.heard(), "resolved");
            let all = (round + 1) * usize::from(2 * PORTS_A_ROUND);
            (ends == all && peers.heard().len() > round).then_some(()).ok_or_else(|| {
                format!("{ends} of {all}, peer {}\n{}\n{}", peers.heard().len(), program.log(), agent.log())
            })
        })?;
        drop(exposed);
        let last = webhook.heard().last().map_or_else(Instant::now, |message| message.at);
        std::thread::sleep((last + REST).saturating_duration_since(Instant::now()));
    }
    program.stop()?;
    report(&deployment, &seen(&answers), &webhook.heard(), &peer_times(&told_peer, &peers.heard())?)
}

/// Each port has been open and is not any more: quick sweeps ask what has a finding.
fn all_are_known(deployment: &Deployment, wire: &Wire, ports: std::ops::Range<u16>) -> Result<()> {
    let agent = deployment.start_agent(wire)?;
    // Where more are open at once, no host is believed.
    for first in ports.clone().step_by(40) {
        let exposed = open(&wire.node, first..ports.end.min(first + 40))?;
        deployment.scanner(wire, &["run", "--once"])?.expect_code(1)?;
        drop(exposed);
        deployment.scanner(wire, &["run", "--once"])?.expect_code(0)?;
    }
    agent.stop().map(drop)
}

fn open(node: &Netns, ports: std::ops::Range<u16>) -> Result<Vec<Server>> {
    ports.flat_map(|port| Family::BOTH.map(|family| Server::tcp(node, family.any(port)))).collect()
}

fn watch(inet: &Netns, answers: &Answers) -> Result<Capture> {
    let answers = Arc::clone(answers);
    Capture::start(inet, move |segment| {
        if segment.flags & (TcpFlags::SYN | TcpFlags::ACK) == TcpFlags::SYN | TcpFlags::ACK {
            let (now, is_scanner) = (Timestamp::now(), !WATCHES.contains(&segment.destination.ip()));
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            let answered = answers.entry(segment.source).or_insert(Answered { first: None, last: now });
            answered.last = now;
            if is_scanner && answered.first.is_none() {
                answered.first = Some(now);
            }
        }
    })
}

fn seen(answers: &Answers) -> BTreeMap<SocketAddr, Answered> {
    answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn replace(deployment: &Deployment, file: &str, from: &str, to: &str) -> Result<()> {
    let file = deployment.path(file);
    Ok(fs::write(&file, fs::read_to_string(&file)?.replace(from, to))?)
}

fn count(heard: &[Message], kind: &str) -> usize {
    heard.iter().flat_map(|message| &message.alerts).filter(|alert| alert["kind"] == kind).count()
}

fn post(alertmanager: &Alertmanager, round: usize) -> Result<()> {
    let alert = json!([{ "labels": { "alertname": format!("round{round}") } }]).to_string();
    let url = format!("http://127.0.0.1:{}/api/v2/alerts", alertmanager.port());
    let mut curl = Command::new("curl");
    run(curl.args(["-fsS", "--noproxy", "*", "-H", "content-type: application/json", "-d", &alert, &url])).map(drop)
}

fn peer_times(told: &[(String, Timestamp)], heard: &[Message]) -> Result<Vec<Duration>> {
    let arrived = |name: &str| {
        let message = heard.iter().find(|message| message.alerts.iter().any(|it| it["labels"]["alertname"] == name));
        message.map(|message| wall(message.at)).with_context(|| format!("{name} never arrived"))
    };
    let mut times = told.iter().map(|(name, at)| since(*at, arrived(name)?)).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times)
}

fn report(
    deployment: &Deployment,
    answers: &BTreeMap<SocketAddr, Answered>,
    heard: &[Message],
    peers: &[Duration],
) -> Result<()> {
    let events = ask(&deployment.path(""), async |database| {
        Past(&database).events(Timestamp::UNIX_EPOCH, Timestamp::now()).await
    })?;
    let (mut alerted, mut closed, mut proven) = (Vec::new(), Vec::new(), Vec::new());
    for message in heard {
        for alert in message.alerts.iter().filter(|alert| alert["kind"] == "exposed") {
            let finding: deadlight_shared::Finding = serde_json::from_value(alert["finding"].clone())?;
            let place = SocketAddr::new(finding.address, finding.port().number.get());
            let answered = answers.get(&place).with_context(|| format!("no answer of {place}"))?;
            let first = answered.first.with_context(|| format!("{place} answered no scanner"))?;
            let mut ends = events.iter().filter(|(it, event)| it.id == finding.id && event.at > first);
            let end = ends.find(|(_, event)| event.status == FindingStatus::Resolved);
            alerted.push(since(first, wall(message.at))?);
            closed.push(since(first, answered.last)?);
            proven.push(since(first, end.with_context(|| format!("{place} was not proven closed"))?.1.at)?);
        }
    }
    let count = alerted.len();
    for (what, times, peer) in
        [("alert at the sink", alerted, true), ("last answer to anybody", closed, false), ("proof", proven, false)]
    {
        let mut times = times;
        times.sort();
        for percent in [50, 99] {
            let peer = peer.then(|| ("Alertmanager", percentile(peers, percent)));
            row(&format!("first answer to {what}, p{percent} of {count}"), percentile(&times, percent), peer);
        }
    }
    Ok(())
}

fn wall(at: Instant) -> Timestamp {
    Timestamp::now() - at.elapsed()
}

fn since(from: Timestamp, to: Timestamp) -> Result<Duration> {
    Ok(to.duration_since(from).max(jiff::SignedDuration::ZERO).try_into()?)
}
