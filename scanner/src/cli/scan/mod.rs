//! `scan`: one look, without agent and configuration.

pub(super) mod document;
#[cfg(test)]
mod fixture;
mod junit;
mod resume;
mod sarif;
mod table;

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Args, ValueEnum};
use deadlight_shared::allowlist::Subject;
use deadlight_shared::hint::Hinted;
use deadlight_shared::{Allowlist, Name, Port, PortSet, Protocol};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tokio::sync::watch;

use super::check::{self, today};
use super::{Exit, Failure, written};
use crate::assess::{Assessment, Expectation, assess};
use crate::config::{self, PortsError};
use crate::net::{self, raw::RawError};
use crate::probe::Payloads;
use crate::sweep::{Method, Plan, PlannedNode, Sweep, SweepError, Target, Unresolved, Watch, nodes_of, sweep};
use document::{Scanned, ScannedNode};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Addresses, CIDR blocks, or names (all their A and AAAA addresses)
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<Target>,
    /// Ports, TCP unless they say otherwise: 80,443,8000-8100,53/udp
    #[arg(long, default_value = "1-65535", value_parser = tcp_unless_said)]
    ports: PortSet,
    /// UDP ports besides: 53,123
    #[arg(long, value_name = "PORTS", value_parser = udp)]
    udp: Option<PortSet>,
    /// Ports that may be open on every target: 22/tcp,443/tcp
    #[arg(long, value_name = "PORTS")]
    allow: Option<PortSet>,
    /// A TOML file of [[allow]] entries; their nodes are the targets as written
    #[arg(long, value_name = "FILE")]
    allowlist: Option<PathBuf>,
    /// How to ask TCP ports
    #[arg(long, value_enum, default_value_t)]
    method: Method,
    /// Probes a second, all targets together [default: 20000]
    #[arg(long, value_name = "PPS", value_parser = rate)]
    rate: Option<NonZeroU32>,
    /// Probes a second at one target [default: 5000, or what --rate says]
    #[arg(long, value_name = "PPS", value_parser = rate)]
    rate_per_node: Option<NonZeroU32>,
    /// Do not find out what is behind an open port (otherwise: one banner, page title or certificate)
    #[arg(long)]
    no_identify: bool,
    /// A TOML file of [[payload]] entries: what UDP probes say, before the built-in ones
    #[arg(long, value_name = "FILE")]
    payloads: Option<PathBuf>,
    /// Keep in FILE what is settled when the scan is interrupted, and go on from there the next time
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// One JSON object, schema deadlight.scan/v1
    Json,
    /// One JSON object a line: each observation, then the summary
    Jsonl,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// JUnit XML, for test reports
    Junit,
}

/// A finished scan, to be shown.
pub(super) struct Scan {
    pub(super) vantage: Name,
    pub(super) scanned: Scanned,
    pub(super) sweep: Sweep,
    pub(super) assessment: Assessment,
    pub(super) expected: BTreeMap<Name, PortSet>,
    pub(super) unresolved: Vec<Unresolved>,
}

pub(super) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let (nodes, unresolved) = nodes_of(&arguments.targets).await;
    let expectations = expectations(&arguments, nodes.iter().map(|(name, _)| name), now)?;
    let payloads = check::payloads(arguments.payloads.as_deref())?;
    let mut plan = plan(&arguments, nodes, &expectations, payloads);
    if let Some(path) = &arguments.resume {
        resume::load(path, &mut plan).map_err(resume::ResumeError::remedied)?;
    }
    let sweep = watched_sweep(&plan).await?;
    if sweep.interrupted {
        tracing::warn!("interrupted: what was not asked is unknown");
    }
    for note in &sweep.notes {
        tracing::warn!("{note}");
    }
    let assessment = assess(&sweep, &expectations, Vec::new());
    let expected = expectations.into_iter().map(|expected| (expected.node, expected.ports)).collect();
    let scanned = scanned(&arguments, &plan);
    let scan = Scan { vantage: vantage(), scanned, sweep, assessment, expected, unresolved };
    if scan.is_blind() {
        tracing::warn!("no port of any target answered or refused: nothing can be said about them");
    }
    written(show(&scan, arguments.output))?;
    // Last: a disk that is full must not cost what was seen.
    if let Some(path) = &arguments.resume {
        resume::save(path, &plan, &scan.sweep).map_err(resume::ResumeError::remedied)?;
    }
    Ok(scan.exit())
}

/// Sweeps with a progress bar on standard error, when that is a terminal. The first SIGINT ends it with what is
/// known, the next one ends the program.
pub(super) async fn watched_sweep(plan: &Plan) -> Result<Sweep, Failure> {
    let targets = plan.nodes.iter().map(|node| (node.addresses.len() * node.ports.len()) as u64).sum();
    let bar = ProgressBar::new(targets);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {percent:>3} %  {human_pos} of {human_len} targets, {eta} left")
    {
        bar.set_style(style);
    }
    let (stop, stopped) = watch::channel(false);
    let watch = Watch { asked: Arc::default(), stop: stopped };
    let sweeping = sweep(plan, net::in_flight_limit(), &watch);
    let watching = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            bar.set_position(watch.asked.load(Ordering::Relaxed));
        }
    };
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.send_replace(true);
        }
        // Nothing is left to clean up: whoever is still impatient shall not have to wait.
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = sweeping => result,
        () = watching => unreachable!("it goes on for ever"),
        () = interrupted => unreachable!("it goes on for ever"),
    };
    bar.finish_and_clear();
    result.map_err(hinted)
}

fn hinted(error: SweepError) -> Failure {
    let hint = match &error {
        SweepError::Syn(RawError::Forbidden) => match std::env::current_exe() {
            Ok(program) => format!("sudo setcap cap_net_raw+ep {}, or --method connect", program.display()),
            Err(_) => "run it as root, or with --method connect".to_owned(),
        },
        SweepError::Syn(RawError::System { .. }) | SweepError::Random => "--method connect needs neither".to_owned(),
    };
    Hinted::new(error, hint).into()
}

impl Scan {
    fn is_complete(&self) -> bool {
        let Sweep { tally, liars, interrupted, .. } = &self.sweep;
        tally.unknown == 0 && liars.is_empty() && !interrupted && self.unresolved.is_empty() && !self.is_blind()
    }

    /// Whether nothing was heard at all: a wrong address or a dead line looks like a closed node.
    fn is_blind(&self) -> bool {
        self.sweep.heard.is_empty()
    }

    fn exit(&self) -> Exit {
        match (self.assessment.exposed.is_empty(), self.is_complete()) {
            _ if self.sweep.interrupted => Exit::Incomplete,
            (false, _) => Exit::Exposed,
            (true, false) => Exit::Incomplete,
            (true, true) => Exit::Fine,
        }
    }

    fn may_be_open(&self, node: &Name, port: Port) -> bool {
        self.expected.get(node).is_some_and(|ports| ports.contains(port))
    }

    /// Probes a second, to one decimal.
    fn speed(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let probes = self.sweep.tally.probes_sent as f64;
        (probes / self.sweep.duration.as_secs_f64().max(1e-3) * 10.0).round() / 10.0
    }
}

fn show(scan: &Scan, output: Output) -> io::Result<()> {
    // What machines read has no colours to take away.
    let mut out: Box<dyn Write> = match output {
        Output::Table => Box::new(BufWriter::new(anstream::stdout())),
        Output::Json | Output::Jsonl | Output::Sarif | Output::Junit => Box::new(BufWriter::new(io::stdout())),
    };
    write(scan, output, &mut out)?;
    out.flush()
}

pub(super) fn write(scan: &Scan, output: Output, out: &mut impl Write) -> io::Result<()> {
    match output {
        Output::Table => table::write(scan, out),
        Output::Json => document::write(scan, out),
        Output::Jsonl => document::write_lines(scan, out),
        Output::Sarif => sarif::write(scan, out),
        Output::Junit => junit::write(scan, out),
    }
}

fn plan(
    arguments: &Arguments,
    nodes: Vec<(Name, Vec<std::net::IpAddr>)>,
    expectations: &[Expectation],
    payloads: Payloads,
) -> Plan {
    let ports = ports(arguments);
    let planned = |((name, addresses), expected): ((Name, _), &Expectation)| PlannedNode {
        name,
        addresses,
        ports: ports.clone(),
        watched: expected.ports.clone(),
    };
    let (rate, rate_per_node) = (arguments.rate, arguments.rate_per_node);
    Plan {
        nodes: nodes.into_iter().zip(expectations).map(planned).collect(),
        method: arguments.method,
        rate: rate.unwrap_or(config::RATE),
        rate_per_node: rate_per_node.or(rate).unwrap_or(config::RATE_PER_NODE),
        identify: !arguments.no_identify,
        payloads,
        known: BTreeMap::new(),
    }
}

/// Ports asked at each address.
fn ports(arguments: &Arguments) -> PortSet {
    let mut ports = arguments.ports.clone();
    if let Some(udp) = &arguments.udp {
        ports.extend(udp);
    }
    ports
}

fn scanned(arguments: &Arguments, plan: &Plan) -> Scanned {
    let node = |node: &PlannedNode| ScannedNode { node: node.name.clone(), addresses: node.addresses.clone() };
    Scanned { ports: ports(arguments), nodes: plan.nodes.iter().map(node).collect() }
}

/// What may be open on each of `nodes`, in their order.
fn expectations<'a>(
    arguments: &Arguments,
    nodes: impl Iterator<Item = &'a Name> + Clone,
    now: Timestamp,
) -> Result<Vec<Expectation>, Failure> {
    let today = today(now);
    let allowlist = match &arguments.allowlist {
        None => Allowlist::default(),
        Some(path) => config::load_allowlist(path, nodes.clone(), today)?,
    };
    for warning in config::expired(&allowlist, today) {
        tracing::warn!("{warning}");
    }
    let expectation = |node: &Name| {
        let mut ports = allowlist.ports_of(Subject { node, labels: &[] }, today);
        if let Some(allow) = &arguments.allow {
            ports.extend(allow);
        }
        Expectation { node: node.clone(), ports }
    };
    Ok(nodes.map(expectation).collect())
}

/// This host's name.
fn vantage() -> Name {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let local = || "local".parse().unwrap_or_else(|_| unreachable!("`local` is a name"));
    name.trim().parse().unwrap_or_else(|_| local())
}

fn tcp_unless_said(text: &str) -> Result<PortSet, PortsError> {
    Ok(PortSet::parse_with_default(text, Protocol::Tcp)?)
}

fn udp(text: &str) -> Result<PortSet, PortsError> {
    config::ports_of(Protocol::Udp, text)
}

fn rate(text: &str) -> Result<NonZeroU32, String> {
    let rate: Option<NonZeroU32> = text.parse().ok();
    rate.filter(|rate| rate.get() <= config::MOST_RATE).ok_or_else(|| format!("use 1 to {}", config::MOST_RATE))
}
