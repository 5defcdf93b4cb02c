//! Second opinions: those that we want, and those that other scanners want of us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadlight_shared::{Name, hint};
use tokio::sync::watch;

use super::round::limits;
use crate::config::{Config, Node};
use crate::probe::Payloads;
use crate::prove::{Second, Verdict, seconded};
use crate::store::{Database, DatabaseError, Look, Target};
use crate::sweep::{Checked, Rescan, rescan};

/// How long another scanner may take to look: a proof, and what it is about.
const AWAITED: Duration = Duration::from_secs(30);
/// How often is asked in case the bell was not heard.
const ASKED: Duration = Duration::from_secs(5);

/// `checked`, where what we have found closed stays so only if another vantage point has found it closed too.
pub(super) async fn second(database: &Database, checked: &mut [Checked]) {
    let is_closed = |checked: &&mut Checked| matches!(checked.verdict, Verdict::Closed(_));
    let closed: BTreeMap<Target, _> =
        checked.iter_mut().filter(is_closed).map(|checked| (target(checked), checked.node.clone())).collect();
    if closed.is_empty() {
        return;
    }
    let seconds = awaited(database, &closed).await.unwrap_or_else(|error| {
        tracing::warn!("no other vantage point can be asked: {}", hint::line(&error));
        BTreeMap::new()
    });
    let mut verdicts = checked.iter_mut().map(|checked| (target(checked), &mut checked.verdict)).collect();
    seconded(&mut verdicts, &seconds);
}

async fn awaited(
    database: &Database,
    closed: &BTreeMap<Target, Name>,
) -> Result<BTreeMap<Target, Second>, DatabaseError> {
    let mut bell = database.bell().await?;
    if !database.ask_others(closed).await? {
        return Ok(BTreeMap::new());
    }
    let until = Instant::now() + AWAITED;
    loop {
        let seconds = database.seconds().await?;
        let left = until.saturating_duration_since(Instant::now());
        if seconds.len() >= closed.len() || left.is_zero() {
            return Ok(seconds);
        }
        bell.rung(left.min(ASKED)).await;
    }
}

/// Looks at what other scanners want looked at, for as long as this runs.
pub(super) async fn witness(database: Arc<Database>, config: watch::Receiver<Arc<Config>>, payloads: Payloads) {
    loop {
        match database.bell().await {
            Ok(mut bell) => loop {
                let config = Arc::clone(&config.borrow());
                if let Err(error) = look(&database, &config, &payloads).await {
                    tracing::warn!("others do not hear what is seen from here: {}", hint::line(&error));
                    break;
                }
                bell.rung(ASKED).await;
            },
            Err(error) => tracing::debug!("{}", hint::line(&error)),
        }
        tokio::time::sleep(ASKED).await;
    }
}

async fn look(database: &Database, config: &Config, payloads: &Payloads) -> Result<(), DatabaseError> {
    loop {
        // Nothing but our own configuration says which addresses are asked.
        let looks = database.take_looks(&config.targets()).await?;
        if looks.is_empty() {
            return Ok(());
        }
        let checked = rescan(&rescans(config, &looks), limits(config), payloads).await;
        let verdicts: BTreeMap<Target, &Verdict> =
            checked.iter().map(|checked| (target(checked), &checked.verdict)).collect();
        let seen: Vec<(Look, Second)> = looks
            .into_iter()
            .filter_map(|look| {
                let second = Second::new(config.vantage.clone(), verdicts.get(&look.target)?);
                Some((look, second))
            })
            .collect();
        database.answer_looks(&seen).await?;
    }
}

fn rescans(config: &Config, looks: &[Look]) -> Vec<Rescan> {
    let ports_of = |address| -> Vec<_> {
        let ports: BTreeSet<_> =
            looks.iter().filter(|look| look.target.address == address).map(|look| look.target.port).collect();
        ports.into_iter().collect()
    };
    let of_node = |node: &Node| -> Vec<Rescan> {
        let rescan = |address: &IpAddr| Rescan {
            node: node.name.clone(),
            address: *address,
            ports: ports_of(*address),
            control: node.control_port(),
        };
        node.addresses.iter().map(rescan).filter(|rescan| !rescan.ports.is_empty()).collect()
    };
    config.nodes.iter().flat_map(of_node).collect()
}

fn target(checked: &Checked) -> Target {
    Target { address: checked.address, port: checked.port }
}
