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

use anyhow::{Context as _, Result, ensure};
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
use serde_json::{Value, json};

use super::{FIRST_PORT, MINUTE, ask, start};
use crate::{
    percentile, repetitions, row,
    sink::{Behaviour, Message, Sink},
};

/// Each of a port of its own, over IPv4 and IPv6 by turns.
const ROUNDS: u16 = 100;

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
    let ports = FIRST_PORT..FIRST_PORT + u16::try_from(repetitions(ROUNDS.into())?)?;
    let wire = Wire::new()?;
    wire.inet.ip("addr add 2001:db8:51::3/64 dev eth0 nodad preferred_lft 0")?;
    let _site = Family::BOTH.map(|family| Server::tcp(&wire.node, family.any(80)));
    let sweep = format!("80,7443,{}-{}", ports.start, ports.end - 1);
    let deployment = Deployment::new(&Settings { mode: "observe", sweep: &sweep, ..Settings::default() })?;
    deployment.prepend("max_new_per_hour = 100000")?;
    all_are_known(&deployment, &wire, ports.clone())?;

    // Of the sinks, PagerDuty's waits least after a message for what could go with it.
    let sink = wire.inet.enter(|| Sink::start(Behaviour::Moody))?;
    let peers = Sink::start(Behaviour::Moody)?;
    let alertmanager = Alertmanager::telling(&peers.url())?;
    fs::write(deployment.path("key"), "0123456789abcdef0123456789abcdef\n")?;
    let block = format!("{}key_file = \"key\"\n[tls]", sink.block("pagerduty"));
    replace(&deployment, "scanner.toml", "[tls]", &block)?;
    replace(&deployment, "scanner.toml", "[sweep]\n", "[sweep]\nevery = \"24h\"\nquick = \"1s\"\n")?;
    replace(&deployment, "agent.toml", "\"observe\"", "\"enforce\"")?;
    let answers = Answers::default();
    let _capture = watch(&wire.inet, &answers)?;
    let agent = deployment.start_agent(&wire)?;
    let program = start(&wire.inet, &deployment.path("scanner.toml"), &deployment.path(""))?;
    wait_for("the first full sweep", MINUTE, || {
        program.log().contains("RESULT").then_some(()).ok_or_else(|| program.log())
    })?;

    let mut told_peer = Vec::new();
    for (round, port) in ports.enumerate() {
        let family = Family::BOTH[round % 2];
        let exposed = Server::tcp(&wire.node, family.any(port))?;
        let _watch = SynWatch::start(&wire.inet, WATCHES[family as usize], family.node(port))?;
        let at = wait_for("an answer", MINUTE, || {
            let answered = seen(&answers).get(&family.node(port)).and_then(|answered| answered.first);
            answered.ok_or_else(|| program.log())
        })?;
        told_peer.push((format!("round{round}"), at));
        post(&alertmanager, round)?;
        wait_for("the end of the round", MINUTE, || match events(&sink.heard(), "resolve").count() {
            ends if ends > round => Ok(()),
            ends => Err(format!("{ends} ends of {}\n{}\n{}", round + 1, program.log(), agent.log())),
        })?;
        drop(exposed);
    }
    let peers = wait_for("Alertmanager", MINUTE, || {
        peer_times(&told_peer, &peers.heard()).map_err(|error| format!("{error:#}"))
    })?;
    program.stop()?;
    report(&deployment, &seen(&answers), &sink.heard(), &peers)
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
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains(from), "no {from} in {text}");
    Ok(fs::write(&file, text.replace(from, to))?)
}

/// When those of `action` arrived.
fn events<'a>(heard: &'a [Message], action: &'a str) -> impl Iterator<Item = (Timestamp, &'a Value)> {
    let events = heard.iter().flat_map(|message| message.alerts.iter().map(|event| (wall(message.at), event)));
    events.filter(move |(_, event)| event["event_action"] == action)
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
    let happened = ask(&deployment.path(""), async |database| {
        Past(&database).events(Timestamp::UNIX_EPOCH, Timestamp::now()).await
    })?;
    let (mut alerted, mut closed, mut proven) = (Vec::new(), Vec::new(), Vec::new());
    for (at, event) in events(heard, "trigger") {
        let place = place(event).with_context(|| format!("no place in {event}"))?;
        let answered = answers.get(&place).with_context(|| format!("no answer of {place}"))?;
        let first = answered.first.with_context(|| format!("{place} answered no scanner"))?;
        let end = happened.iter().find(|(finding, event)| {
            (finding.address, finding.port.get()) == (place.ip(), place.port())
                && event.at > first
                && event.status == FindingStatus::Resolved
        });
        alerted.push(since(first, at)?);
        closed.push(since(first, answered.last)?);
        proven.push(since(first, end.with_context(|| format!("{place} was not proven closed"))?.1.at)?);
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

/// What an event is about.
fn place(event: &Value) -> Option<SocketAddr> {
    let (_, address) = event["payload"]["source"].as_str()?.trim_end_matches(')').split_once('(')?;
    let (port, _) = event["payload"]["component"].as_str()?.split_once('/')?;
    Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
}

fn wall(at: Instant) -> Timestamp {
    Timestamp::now() - at.elapsed()
}

fn since(from: Timestamp, to: Timestamp) -> Result<Duration> {
    Ok(to.duration_since(from).max(jiff::SignedDuration::ZERO).try_into()?)
}
