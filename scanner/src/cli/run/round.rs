//! One round: sweep, order, look again. What each step means is decided in `crate::round`.

use std::collections::BTreeMap;

use deadlight_shared::hint;
use deadlight_shared::wire::{Order, Report};
use deadlight_shared::{Name, Port};
use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use jiff::civil::Date;
use tokio::task::JoinSet;

use super::super::Failure;
use super::super::allowlist;
use super::super::check::today;
use super::super::past::hinted;
use super::super::scan::watched_sweep;
use super::super::story::Story;
use super::daemon::Scanner;
use super::second::second;
use crate::alert::{Beat, Courier};
use crate::config::{Config, TrustSource};
use crate::deliver::{Agent, DeliverError};
use crate::net;
use crate::permits::Permits;
use crate::round::{self, Ending, News, Scope, Turn};
use crate::store::{Database, Past, Store};
use crate::sweep::{Limits, Sweep, rescan};
use crate::upkeep;

/// Nodes that are asked at once besides their orders: one after the other, 500 of them would be waited for.
const AT_ONCE: usize = 64;

impl Scanner {
    pub(super) async fn round(&mut self, scope: Scope) -> Result<Ending, Failure> {
        let config = &self.ours();
        let peers = self.part.as_ref().map_or_else(Vec::new, |part| part.peers.clone());
        let Self { agents, store, database, courier, payloads, .. } = self;
        let mut story = Story::new(scope, anstream::stdout());
        let mut tell = |news: News<'_>| story.tell(config, &news);
        let today = today(Timestamp::now());
        for warning in config.expired(today) {
            tracing::warn!("{warning}");
        }
        match Past(database).silences(Timestamp::now()).await {
            Ok(silences) => store.silence(&silences),
            Err(error) => tracing::warn!("{}", hint::line(&error)),
        }
        let plan = round::plan(config, scope, &config.expectations(today), store.state(), payloads);
        let mut sweep = watched_sweep(&plan).await?;
        hear_controls(config, &mut sweep).await;
        let mut turn = Turn::begin(config, today, scope, sweep, store, &mut tell);

        let permits = permits(config, today);
        let mut orders = turn.orders(config, &permits, store, Timestamp::now());
        orders.iter_mut().for_each(|order| order.peers.clone_from(&peers));
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

        let mut checked = rescan(&turn.looks(config, &mut tell), limits(config), payloads).await;
        if config.seconded {
            second(database, &mut checked).await;
        }
        turn.looked(&checked, store, Timestamp::now(), &mut tell);
        save(store, database, courier).await;
        tell(News::Looked { checked: &checked, dropped: &dropped_since(agents, &reports).await });
        let swept = turn.end(config, store, Timestamp::now(), &mut tell);
        database.write(store.unsaved()).await.map_err(hinted)?;
        store.saved();
        let then = Timestamp::now().checked_sub(config.keep)?;
        if let Err(error) = database.forget(then).await {
            tracing::warn!("{}", hint::line(&hinted(error)));
        }
        match database.keep_within(config.most, Timestamp::now()).await {
            Ok(None) => {}
            Ok(Some(since)) => tracing::warn!(
                "the database has reached `most` of [store]: what happened before {since:.0} is forgotten before its time"
            ),
            Err(error) => tracing::warn!("{}", hint::line(&hinted(error))),
        }
        if scope == Scope::Full && !swept.interrupted {
            self.beat = Some(Beat::of(config.vantage.to_string(), &swept));
        }
        Ok(swept.ending)
    }
}

/// How fast ports are looked at again.
pub(super) fn limits(config: &Config) -> Limits {
    Limits { rate: config.rate, rate_per_node: config.rate_per_node, in_flight: net::in_flight_limit() }
}

/// Nothing waits for a database that cannot be written: orders are sent all the same, and the end of the round tries
/// once more and says what is wrong.
/// Nor do alerts wait for it: then some may be told again after a restart.
pub(super) async fn save(store: &mut Store, database: &Database, courier: &Courier) {
    match database.write(store.unsaved()).await {
        Ok(()) => store.saved(),
        Err(error) => tracing::debug!("{}", hint::line(&error)),
    }
    courier.take(&store.take_alerts());
}

/// Asks each control port once more after the sweep. An address whose control port does not answer
/// counts as not heard: whoever keeps us out now may have done so all along.
async fn hear_controls(config: &Config, sweep: &mut Sweep) {
    let controls = config.nodes.iter().filter_map(|node| Some((node, node.control_port()?)));
    let places = controls.flat_map(|(node, control)| node.addresses.iter().map(move |address| (*address, control)));
    let heard: Vec<_> = places.filter(|(address, _)| sweep.heard.contains(address)).collect();
    let answers = stream::iter(heard).map(async |(address, control)| (address, net::answers(address, control).await));
    let mut answers = answers.buffer_unordered(AT_ONCE);
    while let Some((address, answers)) = answers.next().await {
        if !answers {
            sweep.heard.remove(&address);
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
    let asked = reports.iter().filter(|report| !report.outcomes.is_empty());
    let statuses = stream::iter(asked).map(async |report| (report, agents[&report.node].status().await));
    let (mut statuses, mut grown) = (statuses.buffer_unordered(AT_ONCE), BTreeMap::new());
    while let Some((report, status)) = statuses.next().await {
        match status {
            Ok(status) => grown.extend(round::dropped_since(report, &status)),
            Err(error) => tracing::warn!(node = %report.node, "{}", hint::line(&error)),
        }
    }
    grown
}
