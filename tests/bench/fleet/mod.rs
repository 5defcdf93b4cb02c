//! One real scanner and the 500 agents of a large swarm: each at an address of its own, with its own certificate, port,
//! TLS and API, and all in one process. 500 real ones would take the machine and not the scanner to its limit.

mod agents;
mod machine;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use deadlight_scanner::{
    pki::Pki,
    store::{Event, Past, Swept},
};
use deadlight_shared::{Finding, FindingStatus, Identity};
use deadlight_tests::{deployment::AGENT_PORT, scratch, wait::wait_for, wan::Weather};
use jiff::Timestamp;
use nix::sys::resource::UsageWho;

use crate::{
    alerts::{VANTAGE, ask, start},
    repetitions,
    scan::{
        self,
        lab::{Families, Line, addresses},
    },
    sink::{Behaviour, Sink},
    usage,
};
use agents::Agents;

const NODES: u16 = 500;
/// What is open on each node and should not be.
const EXPOSED: u16 = 8080;
/// How long certificates hold.
const DAYS: u32 = 7;
const SOON: Duration = Duration::from_secs(300);
/// Two quick rounds, in which every agent gets an order.
const REST: Duration = Duration::from_secs(130);
const FAR: Weather = Weather { delay: Duration::from_millis(50), loss: 0.0, seed: 7 };

/// All parts, or those that are named.
pub(crate) fn measure(words: &[String]) -> Result<()> {
    let wanted = |part: &str| words.len() < 2 || words.iter().any(|word| word == part);
    for (part, line, weather) in [("near", "a wire", None), ("far", "a line of 100 ms", Some(FAR))] {
        if wanted(part) {
            println!("\n| {NODES} nodes behind {line} | measured | goal, of 50 nodes |\n|---|---|---|");
            agents(weather)?;
        }
    }
    if wanted("ports") {
        scan::measure_every(repetitions(1)?)?;
    }
    Ok(())
}

fn agents(weather: Option<Weather>) -> Result<()> {
    let line = Line::new(weather)?;
    let nodes = addresses(NODES, Families::Both);
    line.answer_at(nodes.iter().copied())?;
    let directory = scratch::directory()?;
    certificates(directory.path())?;
    let agents = Agents::start(&line.node, &nodes, directory.path())?;
    let sink = line.scanner.enter(|| Sink::start(Behaviour::Moody))?;
    let config = directory.path().join("scanner.toml");
    fs::write(&config, scanner_toml(&nodes, &sink)?)?;

    let others = usage::spent_by(UsageWho::RUSAGE_SELF)?;
    let program = start(&line.scanner, &config, directory.path())?;
    wait_for("the end of a round", SOON, || {
        program.log().contains("RESULT").then_some(()).ok_or_else(|| program.log())
    })?;
    let process = usage::scanner_of(program.pid())?;
    let (spent, peak) = (process.spent()?, process.peak_kib());
    let others = usage::spent_by(UsageWho::RUSAGE_SELF)? - others;
    let vantage = VANTAGE.parse()?;
    let (swept, events) = ask(directory.path(), async |database| {
        let sweeps = Past(&database).sweeps(&vantage, 1).await?;
        Ok((sweeps, Past(&database).events(Timestamp::UNIX_EPOCH, Timestamp::now()).await?))
    })?;
    let swept = swept.first().with_context(|| program.log())?;
    report(swept, &events, &agents, &sink).with_context(|| without_report(&program.log()))?;
    println!(
        "| the scanner's processor time and memory at most | {:.1} s, {} MiB | |",
        spent.as_secs_f64(),
        peak >> 10
    );
    println!(
        "| processor time of the simulated agents and what carries the frames | {:.1} s | |",
        others.as_secs_f64()
    );

    let (spent, others) = (process.spent()?, usage::spent_by(UsageWho::RUSAGE_SELF)?);
    let began = Instant::now();
    sleep(REST);
    println!(
        "| the scanner at rest for {} s, an order to each agent every minute; these and the frames \
         | {:.1} % of a core, {} MiB; {:.1} % | |",
        REST.as_secs(),
        usage::percent(process.spent()? - spent, began.elapsed()),
        process.peak_kib() >> 10,
        usage::percent(usage::spent_by(UsageWho::RUSAGE_SELF)? - others, began.elapsed())
    );
    program.stop().map(drop)
}

/// When the last of all nodes had come so far, from the beginning of the sweep.
fn report(swept: &Swept, events: &[(Finding, Event)], agents: &Agents, sink: &Sink) -> Result<()> {
    let row = |what: &str, times: Vec<Timestamp>, goal: &str| {
        ensure!(times.len() == usize::from(NODES), "{what}: {} of {NODES}", times.len());
        let last = times.into_iter().max().context("nodes")?;
        println!("| {what} | {:.1} s | {goal} |", last.duration_since(swept.started).as_secs_f64());
        Ok(())
    };
    let of = |status: FindingStatus| {
        events.iter().filter(|(_, event)| event.status == status).map(|(_, event)| event.at).collect::<Vec<_>>()
    };
    println!(
        "| a sweep of {} targets with {} probes | {:.1} s | |",
        swept.tally.targets,
        swept.tally.probes_sent,
        swept.milliseconds as f64 / 1e3
    );
    row("from its beginning to the last alert at a webhook", alerted(sink), "10 s from the first answer")?;
    row("to the last closed port", agents.closed(), "15 s")?;
    row("to the last report that is remembered", of(FindingStatus::Enforced), "")?;
    row("to the last proof", of(FindingStatus::Resolved), "60 s")?;
    let end = swept.finished.duration_since(swept.started).as_secs_f64();
    println!("| to the end of the round | {end:.1} s | |");
    Ok(())
}

/// Of the scanner's words those about agents that did not answer.
fn without_report(log: &str) -> String {
    log.lines().filter(|line| line.contains("no report")).collect::<Vec<_>>().join("\n")
}

/// When the sink took each alert of an exposure.
fn alerted(sink: &Sink) -> Vec<Timestamp> {
    let mut alerted = BTreeMap::new();
    for message in sink.heard().iter().filter(|message| message.accepted) {
        for alert in message.alerts.iter().filter(|alert| alert["kind"] == "exposed") {
            alerted.entry(alert["number"].as_u64()).or_insert_with(|| Timestamp::now() - message.at.elapsed());
        }
    }
    alerted.into_values().collect()
}

/// A CA, and the certificate of each node by it.
fn certificates(directory: &Path) -> Result<()> {
    let (pki, now) = (Pki::at(directory), Timestamp::now());
    pki.init(now)?;
    pki.issue(&Identity::Scanner(VANTAGE.parse()?), DAYS, now)?;
    for number in 0..NODES {
        pki.issue(&Identity::Agent(format!("n{number}").parse()?), DAYS, now)?;
    }
    Ok(())
}

fn scanner_toml(nodes: &[IpAddr], sink: &Sink) -> Result<String> {
    let mut config = format!(
        "[vantage]\nid = \"{VANTAGE}\"\n[sweep]\nevery = \"24h\"\nrate = 100000\n\
         tcp = \"1-1000,{AGENT_PORT},{EXPOSED}\"\nudp = \"\"\n[store]\nurl = \"sqlite:deadlight.db\"\n{}\
         [[allow]]\nports = \"{AGENT_PORT}/tcp\"\nnodes = [\"*\"]\nowner = \"ops\"\nreason = \"agents\"\n\
         [pki]\ndirectory = \".\"\n",
        sink.block("webhook")
    );
    for (number, address) in nodes.iter().enumerate() {
        let agent = SocketAddr::new(*address, AGENT_PORT);
        writeln!(config, "[[node]]\nname = \"n{number}\"\naddresses = [\"{address}\"]\nagent = \"https://{agent}\"")?;
    }
    Ok(config)
}
