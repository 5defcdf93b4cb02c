//! The agent's door under strangers: how long an authentic order takes meanwhile, what the agent holds, and when it is at
//! rest again. Strangers and agent share this machine's cores, which a real flood does not.

mod recorder;
mod strangers;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use axum::{Router, routing::get};
use deadlight_tests::{
    deployment::{AGENT_PORT, Deployment, Settings, VANTAGE},
    docker_rules::{Backend, ForwardPolicy, Layout},
    hostile::request,
    lab::{
        Family::{V4, V6},
        HOST, Lab,
    },
    order::{order, send},
    programs::Running,
    test_ca::Validity,
    wait::wait_for,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::percentile;
use strangers::{Kind, Strangers};

/// Each from a network of its own.
const FLOOD: u16 = 10_000;
const SLOW: u16 = 5_000;
const ORDERS: usize = 100;
/// An order is sent again when the door closed on it, as a scanner does.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many strangers of all kinds come one after the other, to one node for a while and then to the next: a node's
/// table of tracked connections ends a run.
const MILLION: u64 = 1_000_000;
const RUN: Duration = Duration::from_secs(20);
/// Of a captured order, every other one changed in one byte.
const REPLAYS: usize = 5_000;
/// How long a peer is watched that drops nobody.
const WATCHED: Duration = Duration::from_secs(30);
const PEER_PORT: u16 = 8_000;

pub(crate) fn measure() -> Result<()> {
    raise_descriptors()?;
    println!("| what | figure |\n|---|---|");
    println!("| no strangers | {} |", Site::new(None)?.orders(ORDERS)?);
    for kind in [Kind::Stalled, Kind::ToTheCertificate, Kind::EndlessHello] {
        flood(kind, None)?;
    }
    flood(Kind::ToTheCertificate, Some("scanners = [\"198.51.100.1\"]"))?;
    slow_writers()?;
    slow_writers_of_peer()?;
    never_heard()?;
    replays()
}

/// Strangers who come again whenever they are shown out.
fn flood(kind: Kind, config: Option<&str>) -> Result<()> {
    let mut site = Site::new(config)?;
    let at_rest = site.descriptors()?;
    let before = site.callers()?;
    let strangers = Strangers::start(&site.lab, V6.node(AGENT_PORT), kind, FLOOD)?;
    let orders = site.orders(ORDERS)?;
    let (calls, lasted) = strangers.stop()?;
    ensure!(config.is_some() || calls >= FLOOD.into(), "only {calls} strangers came in");
    let stopped = Instant::now();
    wait_for("the agent to be at rest", PATIENCE, || match site.descriptors() {
        Ok(now) if now <= at_rest => Ok(()),
        other => Err(format!("{other:?}, not {at_rest}")),
    })?;
    let idle = stopped.elapsed().as_secs_f64();
    let now = site.callers()?;
    let evicted = count(&now, "evicted")? - count(&before, "evicted")?;
    let guarded = if config.is_some() { ", `scanners` named" } else { "" };
    println!(
        "| {FLOOD} concurrent strangers, {kind}{guarded}: {calls} connects in {:.0} s, {evicted} evicted | {orders}; peak \
         {} MiB, idle after {idle:.1} s |",
        lasted.as_secs_f64(),
        site.peak()?
    );
    Ok(())
}

/// Strangers who come once and send a byte a second.
fn slow_writers() -> Result<()> {
    let mut site = Site::new(None)?;
    let strangers = Strangers::start(&site.lab, V6.node(AGENT_PORT), Kind::Slow, SLOW)?;
    let orders = site.orders(ORDERS / 5)?;
    let gone = strangers.all_gone(PATIENCE)?.context("slow writers are still there")?;
    ensure!(strangers.calls() == u64::from(SLOW), "only {} slow writers came in", strangers.calls());
    println!("| {SLOW} slow writers | all gone after {:.1} s; {orders} |", gone.as_secs_f64());
    Ok(())
}

/// The same at `axum::serve`; TLS before it would be one more wait without end.
fn slow_writers_of_peer() -> Result<()> {
    let lab = Lab::new(Layout::V28, Backend::Nft, ForwardPolicy::Drop)?;
    strangers::live_in(&lab)?;
    let (runtime, listener) = lab.node().enter(|| {
        let runtime = strangers::runtime()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(V6.any(PEER_PORT)))?;
        Ok((runtime, listener))
    })?;
    let serving = runtime.spawn(async { axum::serve(listener, Router::new().route("/", get(async || "well"))).await });
    let strangers = Strangers::start(&lab, V6.node(PEER_PORT), Kind::SlowRequest, SLOW)?;
    let gone = strangers.all_gone(WATCHED)?;
    ensure!(strangers.calls() == u64::from(SLOW), "only {} slow writers came in", strangers.calls());
    serving.abort();
    let gone = match gone {
        Some(time) => format!("all gone after {:.1} s", time.as_secs_f64()),
        None => format!("{} of them still there after {} s", strangers.present(), WATCHED.as_secs()),
    };
    println!("| {SLOW} slow writers at `axum::serve` | {gone} |");
    Ok(())
}

/// Strangers of all kinds; what they sent was never read as HTTP.
fn never_heard() -> Result<()> {
    let (mut nodes, mut counted, mut heard, mut lasted) = (0, 0, 0, Duration::ZERO);
    while counted < MILLION {
        let (came, were_heard, time) = never_heard_at_one_node()?;
        ensure!(came > 0, "nobody came to node {}", nodes + 1);
        (nodes, counted, heard, lasted) = (nodes + 1, counted + came, heard + were_heard, lasted + time);
    }
    println!(
        "| {counted} strangers at {nodes} nodes in {:.0} s: garbage, HTTP, HTTP/2, half and whole hellos | {heard} reached \
         the HTTP parser |",
        lasted.as_secs_f64()
    );
    Ok(())
}

/// How many came, how many of them were heard, and in which time.
fn never_heard_at_one_node() -> Result<(u64, u64, Duration)> {
    let site = Site::new(None)?;
    let before = site.callers()?;
    let strangers = Strangers::start(&site.lab, V6.node(AGENT_PORT), Kind::Brief, 200)?;
    std::thread::sleep(RUN);
    let (calls, lasted) = strangers.stop()?;
    let (after, counted) = wait_for("all strangers to be counted", PATIENCE, || {
        let after = site.callers().map_err(|error| format!("{error:#}"))?;
        let counted = count(&after, "strangers").unwrap_or(0) - count(&before, "strangers").unwrap_or(0);
        if counted >= calls { Ok((after, counted)) } else { Err(format!("{counted} of {calls}")) }
    })?;
    // Each question for the counters is one that is heard.
    let heard = count(&after, "proven")? - count(&before, "proven")?;
    Ok((counted, heard + 1 - site.asked.get(), lasted))
}

/// What was captured of an order, sent again.
fn replays() -> Result<()> {
    let mut site = Site::new(None)?;
    let captured = recorder::record(&site.lab, V4.node(AGENT_PORT), |relay| {
        let scanner = site.deployment.identity(&scanner(), Validity::Current)?;
        site.sequence += 1;
        let body = order(site.sequence, &[]).to_string();
        request(site.lab.inet(), relay, Some(scanner), "PUT", deadlight_tests::order::PATH, &body)
    })?;
    let (rules, before) = ((site.lab.saved_rules()?, site.lab.native_tables()?), site.callers()?);
    recorder::replay(&site.lab, V4.node(AGENT_PORT), &captured, REPLAYS)?;
    let after = site.callers()?;
    ensure!((site.lab.saved_rules()?, site.lab.native_tables()?) == rules, "a replay changed rules");
    println!(
        "| {REPLAYS} replays of a captured order of {} bytes, every other one changed | {} heard, 0 acts |",
        captured.len(),
        count(&after, "proven")? - count(&before, "proven")? - 1
    );
    Ok(())
}

/// A node with its agent, and a scanner whose orders are timed.
struct Site {
    agent: Running,
    deployment: Deployment,
    lab: Lab,
    sequence: u64,
    asked: std::cell::Cell<u64>,
}

impl Site {
    fn new(config: Option<&str>) -> Result<Self> {
        let lab = Lab::new(Layout::V28, Backend::Nft, ForwardPolicy::Drop)?;
        strangers::live_in(&lab)?;
        let deployment = Deployment::new(&Settings::default())?;
        deployment.prepend("max_new_per_hour = 1000000")?;
        config.map_or(Ok(()), |line| deployment.prepend(line))?;
        let agent = deployment.start_agent(&lab.wire)?;
        let mut site = Self { agent, deployment, lab, sequence: 0, asked: 0.into() };
        site.order()?;
        Ok(site)
    }

    fn orders(&mut self, count: usize) -> Result<String> {
        let mut orders = (0..count).map(|_| self.order()).collect::<Result<Vec<_>>>()?;
        orders.sort();
        let times: Vec<Duration> = orders.iter().map(|(time, _)| *time).collect();
        let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&times, percent).as_secs_f64());
        let again: usize = orders.iter().map(|(_, attempts)| attempts - 1).sum();
        Ok(format!("order enforced p50 {p50:.2} s, p99 {p99:.2} s, max {max:.2} s of {count}, {again} sent again"))
    }

    /// How long until the next order, which closes or opens a port, was enforced, and how often it had to be sent.
    fn order(&mut self) -> Result<(Duration, usize)> {
        self.sequence += 1;
        let is_open = self.sequence.is_multiple_of(2);
        let findings: &[_] = if is_open { &[] } else { &[(V4, "tcp", HOST)] };
        let mut body = order(self.sequence, findings);
        if is_open {
            body["allow"] = json!(["80/tcp", format!("{HOST}/tcp")]);
        }
        let (started, mut attempts) = (Instant::now(), 1);
        loop {
            match send(&self.deployment, &self.lab.wire, &body) {
                Ok(response) => {
                    let enforced = response.text.matches("\"enforced\"").count();
                    ensure!(response.status == 200 && enforced == findings.len(), "{}", response.text);
                    return Ok((started.elapsed(), attempts));
                }
                Err(error) => ensure!(started.elapsed() < PATIENCE, "{attempts} attempts, the last: {error:#}"),
            }
            attempts += 1;
        }
    }

    /// The agent's own count of who came.
    fn callers(&self) -> Result<Value> {
        self.asked.set(self.asked.get() + 1);
        let scanner = self.deployment.identity(&scanner(), Validity::Current)?;
        let response = request(self.lab.inet(), V4.node(AGENT_PORT), Some(scanner), "GET", "/v1/status", "")?;
        let (_, body) = response.text.split_once("\r\n\r\n").context("no body")?;
        Ok(serde_json::from_str::<Value>(body)?["callers"].take())
    }

    fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.agent.pid()))?.count())
    }

    /// The most memory that the agent ever held, in MiB.
    fn peak(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()?.div_ceil(1024))
    }
}

fn scanner() -> String {
    format!("spiffe://deadlight/scanner/{VANTAGE}")
}

fn count(callers: &Value, name: &str) -> Result<u64> {
    callers[name].as_u64().with_context(|| format!("no {name} in {callers}"))
}

fn raise_descriptors() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = u64::from(FLOOD) + 1_000;
    ensure!(most >= wanted, "{most} descriptors are too few for {FLOOD} strangers: `ulimit -Hn` must be {wanted}");
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
