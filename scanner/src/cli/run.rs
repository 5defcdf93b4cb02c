//! `run`: sweep, assess, order, prove.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use deadlight_shared::hint::{self, HintExt as _, Hinted};
use deadlight_shared::wire::{Order, Report};
use deadlight_shared::{Finding, Name, Port, PortSet};
use jiff::Timestamp;
use jiff::civil::Date;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::allowlist;
use super::check::{self, today};
use super::scan::watched_sweep;
use super::story::Story;
use super::{Exit, Failure};
use crate::assess::{Assessment, Expectation, assess};
use crate::config::{Config, Node, TrustSource};
use crate::deliver::{Agent, DeliverError};
use crate::net;
use crate::permits::Permits;
use crate::probe::{Outcome, Payloads};
use crate::pull::{Hub, Purpose};
use crate::round::{self, Ending};
use crate::store::{Store, StoreError};
use crate::sweep::{Limits, Method, Plan, PlannedNode, Sweep, rescan};
use crate::upkeep;

/// How often certificates are looked after between rounds.
const UPKEEP: Duration = Duration::from_secs(3_600);
const CONTROL_ATTEMPTS: usize = 3;
const CONTROL_LIMIT: Duration = Duration::from_millis(1_500);

pub(super) const HELP: &str = "\
Exit status:
  0  with --once: nothing unexpected is open, or all of it is proven closed; else: stopped by a signal
  1  with --once: an unexpected port is still open (no agent, agent not reached, not closed, refused)
  2  usage, configuration or run-time error
  3  with --once: incomplete: something could not be asked, or is closed by the agent but not proven,
     or the vantage point is blind (and no unexpected port is known to be open)";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: check::ConfigFile,
    /// One full loop, then exit
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let config = check::load(&arguments.file.config, today(now))?;
    let store = Store::open(&config.state, now).map_err(|error| {
        let remedy = match error {
            StoreError::Busy { .. } => "stop the other one, or give this one a state file of its own",
            _ => "restore it from a backup, or move it away to begin anew",
        };
        Hinted::new(error, remedy)
    })?;
    let hub = upkeep::open(&config, check::credentials(&config)?.as_ref())
        .hint("[pull] listen must be an address of this host that nobody else listens on; `ss -lntp` shows who does")?;
    let agents = agents(&config, hub.as_ref())?;
    let payloads = check::payloads(config.payloads.as_deref())?;
    let mut scanner = Scanner { config, hub, agents, told: 0, store, payloads, story: Story(anstream::stdout()) };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let work = async {
        match arguments.once {
            true => scanner.round().await.map(|ending| exit(&ending)),
            false => scanner.forever().await,
        }
    };
    // Wherever the work is dropped, the state on disk is whole, and orders repeat what they mean.
    let stopped = tokio::select! {
        result = work => return result,
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = stopped, "stopped");
    match arguments.once {
        true => Err(format!("stopped by {stopped} before the loop was complete").into()),
        false => Ok(Exit::Fine),
    }
}

struct Scanner {
    config: Config,
    /// Where nodes call.
    hub: Option<Hub>,
    agents: BTreeMap<Name, Agent>,
    /// The generation of the trust document that calls to them carry.
    told: u64,
    store: Store,
    payloads: Payloads,
    story: Story<anstream::Stdout>,
}

impl Scanner {
    /// Round after round, from the start of one to the start of the next.
    async fn forever(&mut self) -> Result<Exit, Failure> {
        let mut ticks = tokio::time::interval(self.config.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut kept = Instant::now();
            while timeout(upkeep::NEWS, ticks.tick()).await.is_err() {
                if self.is_news() || kept.elapsed() > UPKEEP {
                    self.keep_certificates().await;
                    kept = Instant::now();
                }
            }
            if let Err(error) = self.round().await {
                tracing::error!("{}", hint::line(error.as_ref()));
            }
        }
    }

    /// A failure is no reason not to sweep: the certificates that are there hold for days.
    async fn keep_certificates(&mut self) {
        let kept: Result<(), Failure> = async {
            if let Some(TrustSource::Pki(pki)) = &self.config.trust {
                upkeep::keep(&self.config, pki, self.hub.as_ref(), Timestamp::now()).await?;
                self.agents = agents(&self.config, self.hub.as_ref())?;
                self.told = pki.read()?.map_or(0, |registry| registry.trust().generation);
                upkeep::spread(pki, &self.agents, Timestamp::now()).await?;
            }
            Ok(())
        }
        .await;
        if let Err(error) = kept {
            tracing::error!("{}", hint::line(error.as_ref()));
        }
    }

    /// Whether somebody is invited, or the trust document is younger than what our calls carry.
    fn is_news(&self) -> bool {
        let Some(TrustSource::Pki(pki)) = &self.config.trust else { return false };
        pki.read().is_ok_and(|registry| {
            registry.is_some_and(|registry| {
                registry.trust().generation != self.told || !registry.invited(Timestamp::now()).is_empty()
            })
        })
    }

    async fn round(&mut self) -> Result<Ending, Failure> {
        self.keep_certificates().await;
        let today = today(Timestamp::now());
        for warning in self.config.expired(today) {
            tracing::warn!("{warning}");
        }
        let expectations = self.config.expectations(today);
        let mut sweep =
            watched_sweep(&plan(&self.config, &expectations, self.store.findings(), &self.payloads)).await?;
        self.hear_controls(&mut sweep).await;
        let known = self.store.findings().to_vec();
        let mut assessment = assess(&sweep, &expectations, known);
        self.store.keep(assessment.findings.clone())?;
        self.story.sweep(&self.config, &sweep, &assessment);

        let reports = self.order(&sweep, &mut assessment, today).await?;
        let ordered = reports.keys().cloned().collect();
        let rescans = round::rescans(&self.config, &expectations, &assessment, &ordered);
        self.story.rescan(&rescans);
        let Config { rate, rate_per_node, .. } = self.config;
        let limits = Limits { rate, rate_per_node, in_flight: net::in_flight_limit() };
        let checked = rescan(&rescans, limits, &self.payloads).await;
        round::take_proofs(&mut assessment, &checked, Timestamp::now());
        self.store.keep(assessment.findings.clone())?;
        let dropped = self.dropped_since(&reports).await;
        self.story.proofs(&checked, &dropped);

        let ending = round::ending(&self.config, &sweep, &assessment);
        self.story.ending(&ending);
        Ok(ending)
    }

    /// Asks each control port once more after the sweep. An address whose control port does not answer
    /// counts as not heard: whoever keeps us out now may have done so all along.
    async fn hear_controls(&self, sweep: &mut Sweep) {
        for node in &self.config.nodes {
            let Some(control) = node.control_port() else { continue };
            for address in &node.addresses {
                let mut answered = false;
                for _ in 0..CONTROL_ATTEMPTS {
                    let asked = net::ask(*address, control, &[], CONTROL_LIMIT).await;
                    answered |= matches!(asked.outcome, Outcome::Answered { .. });
                    if answered {
                        break;
                    }
                }
                if !answered {
                    sweep.heard.remove(address);
                }
            }
        }
    }

    /// Packets that each guard dropped for each port since its report. Shown beside a proof, never part of it.
    async fn dropped_since(&self, reports: &BTreeMap<Name, Report>) -> BTreeMap<(Name, Port), u64> {
        let mut grown = BTreeMap::new();
        for (node, report) in reports.iter().filter(|(_, report)| !report.outcomes.is_empty()) {
            match self.agents[node].status().await {
                Ok(status) => grown.extend(round::dropped_since(report, &status)),
                Err(error) => tracing::warn!(%node, "{}", hint::line(&error)),
            }
        }
        grown
    }

    /// The signed allowlist, read each time: what was signed meanwhile goes with the next order. Without it,
    /// what agents were sent before holds there.
    fn permits(&self, today: Date) -> Permits {
        let permits = allowlist::load(&self.config.signed).unwrap_or_else(|error| {
            tracing::warn!("{}", hint::line(error.as_ref()));
            None
        });
        for difference in permits.iter().flat_map(|permits| allowlist::unsigned(&self.config, permits, today)) {
            tracing::warn!("{difference}");
        }
        permits.unwrap_or_default()
    }

    /// Sends every agent its order; the reports of those that have taken it.
    async fn order(
        &mut self,
        sweep: &Sweep,
        assessment: &mut Assessment,
        today: Date,
    ) -> Result<BTreeMap<Name, Report>, Failure> {
        let permits = self.permits(today);
        let mut sending = JoinSet::new();
        for node in &self.config.nodes {
            let Some(agent) = self.agents.get(&node.name).cloned() else { continue };
            let (mark, allow) = (self.store.next_mark()?, self.config.allowlist.ports_of(node.subject(), today));
            let findings = &assessment.findings;
            let (scanner, now) = (&self.config.vantage, Timestamp::now());
            let permit = permits.of(&node.name).cloned();
            let order = Order { permit, ..round::order_for(scanner, node, mark, sweep, findings, allow, now) };
            sending.spawn(deliver(agent, order));
        }
        let mut answers = BTreeMap::new();
        while let Some(joined) = sending.join_next().await {
            let (node, answer) = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            answers.insert(node, answer);
        }
        let mut reports = BTreeMap::new();
        for node in &self.config.nodes {
            match answers.remove(&node.name) {
                None => {}
                Some(Err(error)) => self.story.no_report(&node.name, &self.agents[&node.name], &error),
                Some(Ok(report)) => {
                    self.story.report(&report, assessment);
                    round::take_report(assessment, &report);
                    reports.insert(node.name.clone(), report);
                }
            }
        }
        self.store.keep(assessment.findings.clone())?;
        if let Some(TrustSource::Pki(pki)) = &self.config.trust {
            upkeep::remember_held(pki, &self.agents, Timestamp::now())?;
        }
        Ok(reports)
    }
}

async fn deliver(agent: Agent, order: Order) -> (Name, Result<Report, DeliverError>) {
    let report = agent.deliver(&order).await;
    (order.node, report)
}

/// The way to every agent, by the certificate that we have now.
fn agents(config: &Config, hub: Option<&Hub>) -> Result<BTreeMap<Name, Agent>, Failure> {
    let Some(credentials) = check::credentials(config)? else { return Ok(BTreeMap::new()) };
    let registry = match &config.trust {
        Some(TrustSource::Pki(pki)) => pki.read()?,
        _ => None,
    };
    Ok(upkeep::agents(
        upkeep::with_agent(config),
        &credentials,
        registry.as_ref(),
        hub,
        Purpose::Work,
        Timestamp::now(),
    )?)
}

/// What to sweep: the configured ports, the node's own, and everything that has a finding.
fn plan(config: &Config, expectations: &[Expectation], known: &[Finding], payloads: &Payloads) -> Plan {
    let planned = |(node, expected): (&Node, &Expectation)| {
        let mut watched: PortSet =
            known.iter().filter(|finding| finding.node == node.name).map(Finding::port).collect();
        watched.extend(&node.own_ports());
        let mut ports = config.ports.clone();
        ports.extend(&watched);
        watched.extend(&expected.ports);
        PlannedNode { name: node.name.clone(), addresses: node.addresses.clone(), ports, watched }
    };
    Plan {
        nodes: config.nodes.iter().zip(expectations).map(planned).collect(),
        method: Method::Auto,
        rate: config.rate,
        rate_per_node: config.rate_per_node,
        identify: config.identify,
        payloads: payloads.clone(),
        known: BTreeMap::new(),
    }
}

fn exit(ending: &Ending) -> Exit {
    match (ending.open, ending.is_complete()) {
        (0, true) => Exit::Fine,
        (0, false) => Exit::Incomplete,
        _ => Exit::Exposed,
    }
}
