//! The last two complete sweeps of the database, as if they had been saved.

use std::collections::BTreeMap;
use std::net::IpAddr;

use deadlight_shared::hint::Hinted;
use deadlight_shared::{Name, PortState};

use super::super::Failure;
use super::super::check::ConfigFile;
use super::super::past;
use super::super::scan::document::{Scanned, ScannedNode};
use super::saved::Saved;
use crate::config::Config;
use crate::store::{self, DatabaseError, Past, Swept};

/// Among so many, two complete ones are looked for.
const FAR_ENOUGH: u32 = 1_000;

#[derive(Debug, thiserror::Error)]
#[error("the database remembers {0} complete sweeps, and two are needed")]
struct TooFew(usize);

/// The earlier and the later one.
pub(super) async fn last_two(file: &ConfigFile) -> Result<[Saved; 2], Failure> {
    let (config, database) = past::open(file).await?;
    let past = Past(&database);
    let sweeps = past.sweeps(&config.vantage, FAR_ENOUGH).await.map_err(past::hinted)?;
    let complete: Vec<&Swept> = sweeps.iter().filter(|sweep| sweep.is_complete()).take(2).collect();
    let [after, before] = complete[..] else {
        let hint = "deadlight-scanner sweep now makes one; `status` says what keeps them from being complete";
        return Err(Hinted::new(TooFew(complete.len()), hint).into());
    };
    let sides = [saved(&config, &past, before).await, saved(&config, &past, after).await];
    let [before, after] = sides.map(|side| side.map_err(past::hinted));
    Ok([before?, after?])
}

/// What `swept` saw at the addresses of the configuration.
async fn saved(config: &Config, past: &Past<'_>, swept: &Swept) -> Result<Saved, DatabaseError> {
    let nodes: BTreeMap<IpAddr, &Name> =
        config.nodes.iter().flat_map(|it| it.addresses.iter().map(|at| (*at, &it.name))).collect();
    let seen = past.states(swept.started).await?;
    let liars = store::liars(seen.iter().map(|(target, state)| (target, *state)));
    let listed = |(target, state): (&store::Target, &PortState)| {
        let node = (*nodes.get(&target.address)?).clone();
        Some(((node, target.address, target.port), *state))
    };
    Ok(Saved {
        vantage: config.vantage.clone(),
        started: swept.started,
        finished: swept.finished,
        complete: true,
        // The configuration may have changed since.
        scanned: (swept.scope == Some(config.scope())).then(|| Scanned {
            ports: config.ports.clone(),
            nodes: config
                .nodes
                .iter()
                .map(|it| ScannedNode { node: it.name.clone(), addresses: it.addresses.clone() })
                .collect(),
        }),
        liars: liars.into_keys().collect(),
        states: seen.iter().filter_map(listed).collect(),
    })
}
