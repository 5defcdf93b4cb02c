//! `run`: sweep, assess, order, prove.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use deadlight_shared::hint::{self, HintExt as _};
use deadlight_shared::wire::{Order, Report};
use deadlight_shared::{Name, Port};
use jiff::Timestamp;
use jiff::civil::Date;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::alert;
use super::allowlist;
use super::check::{self, today};
use super::past::hinted;
use super::scan::watched_sweep;
use super::story::Story;
use super::{Exit, Failure};
use crate::alert::Courier;
use crate::config::{Config, TrustSource};
use crate::deliver::{Agent, DeliverError};
use crate::net;
use crate::permits::Permits;
use crate::probe::{Outcome, Payloads};
use crate::pull::{Hub, Purpose};
use crate::round::{self, Ending, News, Turn};
use crate::store::{Database, Past, Store};
use crate::sweep::{Limits, Sweep, rescan};
use crate::upkeep;

/// How often certificates are looked after between rounds.
const UPKEEP: Duration = Duration::from_secs(3_600);
const CONTROL_ATTEMPTS: usize = 3;
/// After the last round, for alerts.
const CARRIED: Duration = Duration::from_secs(60);
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
    let credentials = check::credentials(&config)?;
    check::registry(&config)?;
    let payloads = check::payloads(config.payloads.as_deref())?;
    let sinks = alert::sinks(&config)?;
    // What is wrong with the configuration is said before anything is made.
    let database = Database::open_alone(&config.store, &config.vantage).await.map_err(hinted)?;
    let store = Store::new(database.load().await.map_err(hinted)?, now);
    let hub = upkeep::open(&config, credentials.as_ref())
        .hint("[pull] listen must be an address of this host that nobody else listens on; `ss -lntp` shows who does")?;
    let agents = agents(&config, hub.as_ref())?;
    let database = Arc::new(database);
    let courier = Courier::start(sinks, &database).await.map_err(hinted)?;
    let closing = Arc::clone(&database);
    let mut scanner = Scanner { config, hub, agents, told: 0, store, database, courier, payloads };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let work = async {
        match arguments.once {
            true => scanner.round().await.map(|ending| exit(&ending)),
            false => scanner.forever().await,
        }
    };
    // Wherever the work is dropped, the state on disk is whole, and orders repeat what they mean.
    let stopped = tokio::select! {
        result = work => {
            let carried = tokio::select! {
                carried = scanner.courier.finish(CARRIED) => carried,
                _ = terminate.recv() => false,
                _ = interrupt.recv() => false,
            };
            if !carried {
                tracing::error!("not everybody was told in time; `run` goes on with it when it begins");
            }
            closing.close().await;
            return result;
        }
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    closing.close().await;
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
    database: Arc<Database>,
    courier: Courier,
    payloads: Payloads,
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
        let Self { config, agents, store, database, courier, payloads, .. } = self;
        let mut story = Story(anstream::stdout());
        let mut tell = |news: News<'_>| story.tell(config, &news);
        let today = today(Timestamp::now());
        for warning in config.expired(today) {
            tracing::warn!("{warning}");
        }
        match Past(database).silences(Timestamp::now()).await {
            Ok(silences) => store.silence(&silences),
            Err(error) => tracing::warn!("{}", hint::line(&error)),
        }
        let plan = round::plan(config, &config.expectations(today), store.findings(), payloads);
        let mut sweep = watched_sweep(&plan).await?;
        hear_controls(config, &mut sweep).await;
        let mut turn = Turn::begin(config, today, sweep, store, &mut tell);

        let permits = permits(config, today);
        let orders = turn.orders(config, &permits, store, Timestamp::now());
        save(store, database, courier).await;
        let answers = deliver(agents, orders).await;
        if answers.values().flat_map(|answer| answer.as_ref().err()).any(DeliverError::is_untimely) {
            store.begin_epoch(Timestamp::now());
        }
        let reports: Vec<Report> = answers.values().flatten().cloned().collect();
        turn.answered(config, answers, store, Timestamp::now(), &mut tell);
        save(store, database, courier).await;
        if let Some(TrustSource::Pki(pki)) = &config.trust {
            // Told again with the next order; the proof must not wait for a disk.
            if let Err(error) = upkeep::remember_held(pki, agents, Timestamp::now()) {
                tracing::error!("{}", hint::line(&error));
            }
        }

        let limits =
            Limits { rate: config.rate, rate_per_node: config.rate_per_node, in_flight: net::in_flight_limit() };
        let checked = rescan(&turn.looks(config, &mut tell), limits, payloads).await;
        turn.looked(&checked, store, Timestamp::now(), &mut tell);
        save(store, database, courier).await;
        tell(News::Looked { checked: &checked, dropped: &dropped_since(agents, &reports).await });
        let ending = turn.end(config, store, Timestamp::now(), &mut tell);
        database.write(store.unsaved()).await.map_err(hinted)?;
        store.saved();
        let then = Timestamp::now().checked_sub(config.keep)?;
        if let Err(error) = database.forget(then).await {
            tracing::warn!("{}", hint::line(&hinted(error)));
        }
        Ok(ending)
    }
}

/// Nothing waits for a database that cannot be written: orders are sent all the same, and the end of the round tries
/// once more and says what is wrong.
/// Nor do alerts wait for it: then some may be told again after a restart.
async fn save(store: &mut Store, database: &Database, courier: &Courier) {
    match database.write(store.unsaved()).await {
        Ok(()) => store.saved(),
        Err(error) => tracing::debug!("{}", hint::line(&error)),
    }
    courier.take(&store.take_alerts());
}

/// Asks each control port once more after the sweep. An address whose control port does not answer
/// counts as not heard: whoever keeps us out now may have done so all along.
async fn hear_controls(config: &Config, sweep: &mut Sweep) {
    for node in &config.nodes {
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

/// The signed allowlist, read each time: what was signed meanwhile goes with the next order. Without it,
/// what agents were sent before holds there.
fn permits(config: &Config, today: Date) -> Permits {
    let permits = allowlist::load(&config.signed).unwrap_or_else(|error| {
        tracing::warn!("{}", hint::line(error.as_ref()));
        None
    });
    for difference in permits.iter().flat_map(|permits| allowlist::unsigned(config, permits, today)) {
        tracing::warn!("{difference}");
    }
    permits.unwrap_or_default()
}

/// Sends each order to its agent; what came of it.
async fn deliver(agents: &BTreeMap<Name, Agent>, orders: Vec<Order>) -> BTreeMap<Name, Result<Report, DeliverError>> {
    let mut sending = JoinSet::new();
    for order in orders {
        let Some(agent) = agents.get(&order.node).cloned() else { continue };
        sending.spawn(async move {
            let answer = agent.deliver(&order).await;
            (order.node, answer)
        });
    }
    let mut answers = BTreeMap::new();
    while let Some(joined) = sending.join_next().await {
        answers.extend([joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))]);
    }
    answers
}

/// Packets that each guard dropped for each port since its report. Shown beside a proof, never part of it.
async fn dropped_since(agents: &BTreeMap<Name, Agent>, reports: &[Report]) -> BTreeMap<(Name, Port), u64> {
    let mut grown = BTreeMap::new();
    for report in reports.iter().filter(|report| !report.outcomes.is_empty()) {
        match agents[&report.node].status().await {
            Ok(status) => grown.extend(round::dropped_since(report, &status)),
            Err(error) => tracing::warn!(node = %report.node, "{}", hint::line(&error)),
        }
    }
    grown
}

/// The way to every agent, by the certificate that we have now.
fn agents(config: &Config, hub: Option<&Hub>) -> Result<BTreeMap<Name, Agent>, Failure> {
    let Some(credentials) = check::credentials(config)? else { return Ok(BTreeMap::new()) };
    Ok(upkeep::agents(
        upkeep::with_agent(config),
        &credentials,
        check::registry(config)?.as_ref(),
        hub,
        Purpose::Work,
        Timestamp::now(),
    )?)
}

fn exit(ending: &Ending) -> Exit {
    match (ending.open, ending.is_complete()) {
        (0, true) => Exit::Fine,
        (0, false) => Exit::Incomplete,
        _ => Exit::Exposed,
    }
}
