//! One pass over all targets: engines driven with sockets and a clock.

mod confirm;
mod found;
mod lanes;
mod rescan;
mod seen;
mod sockets;
mod syn;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use deadlight_shared::{Evidence, Name, Observation, PortSet, PortState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::net::raw::RawError;
use crate::probe::Payloads;
use seen::Seen;

pub use confirm::MOST_OPEN;
pub use rescan::{Checked, Limits, Rescan, rescan};
pub use targets::{Target, TargetError, Unresolved, nodes_of};

/// What to sweep, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The nodes.
    pub nodes: Vec<PlannedNode>,
    /// How TCP ports are asked.
    pub method: Method,
    /// Probes a second, all nodes together.
    pub rate: NonZeroU32,
    /// Probes a second at one node.
    pub rate_per_node: NonZeroU32,
    /// Whether to find out what is behind an open port.
    pub identify: bool,
    /// What UDP probes say.
    pub payloads: Payloads,
    /// What an earlier sweep has settled: it is counted and not asked again.
    pub known: BTreeMap<IpAddr, Known>,
}

/// Ports of one address that need not be asked again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Those that refused.
    pub closed: PortSet,
    /// Those that kept silent, often enough.
    pub filtered: PortSet,
}

/// How TCP ports are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Method {
    /// SYN where this user may send packets, connect where not
    #[default]
    Auto,
    /// SYN packets of our own; needs root or CAP_NET_RAW
    Syn,
    /// A full handshake by the kernel; needs no privileges
    Connect,
}

/// One node of a plan.
#[derive(Debug, Clone)]
pub struct PlannedNode {
    /// Its name.
    pub name: Name,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports asked at each address.
    pub ports: PortSet,
    /// Ports whose state is kept whatever it is.
    pub watched: PortSet,
}

/// What a sweep saw.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Every target that is neither closed nor filtered, and every watched one, in order.
    pub observations: Vec<Observation>,
    /// Targets of which nothing is known.
    pub unasked: Vec<Unasked>,
    /// Addresses at which at least one port answered or refused.
    pub heard: BTreeSet<IpAddr>,
    /// Addresses that answer where nothing can be, with the number of ports that did.
    pub liars: BTreeMap<IpAddr, usize>,
    /// What the reader should know about how it was asked.
    pub notes: Vec<String>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// What it had settled by then, watched ports left out; empty when it came to its end.
    pub settled: BTreeMap<IpAddr, Known>,
    /// Counts over all targets.
    pub tally: Tally,
    /// Time spent.
    pub duration: Duration,
}

/// Ports of one address of which nothing is known.
#[derive(Debug, Clone)]
pub struct Unasked {
    /// Node it belongs to.
    pub node: Name,
    /// The address.
    pub address: IpAddr,
    /// Why.
    pub reason: String,
    /// The ports.
    pub ports: PortSet,
    /// How often each of them was asked all the same.
    pub attempts: u32,
}

/// Counts over all targets of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Targets of the plan.
    pub targets: u64,
    /// That answered.
    pub open: u64,
    /// That refused.
    pub closed: u64,
    /// TCP: no answer, or ICMP unreachable.
    pub filtered: u64,
    /// UDP: no answer.
    pub open_filtered: u64,
    /// That could not be asked, or not often enough.
    pub unknown: u64,
    /// SYN packets, connection attempts and datagrams.
    pub probes_sent: u64,
    /// Captured packets that were lost on this host; what they might have answered was asked again.
    pub dropped: u64,
    /// How often ports that had answered were asked again, to measure loss; 0 in records of older versions.
    #[serde(default)]
    pub controls: u64,
    /// How many of those were not answered.
    #[serde(default)]
    pub lost: u64,
}

/// Lets a sweep be watched and stopped.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Targets that have been asked for the first time.
    pub asked: Arc<AtomicU64>,
    /// Becomes true when the sweep is to end with what it knows.
    pub stop: watch::Receiver<bool>,
}

/// Why there is no sweep.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Method syn was asked for, and cannot be had.
    #[error("failed to prepare a SYN scan")]
    Syn(#[from] RawError),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl Unasked {
    /// Why nothing is known, as the end of a sentence about the ports.
    pub fn why(&self) -> String {
        match self.attempts {
            0 => format!("could not be asked: {}", self.reason),
            _ => self.reason.clone(),
        }
    }

    /// One observation for each of the ports.
    pub fn observations(&self) -> impl Iterator<Item = Observation> + '_ {
        let evidence = match self.attempts {
            0 => Evidence::NotAsked(self.reason.clone()),
            _ => Evidence::Inconclusive(self.reason.clone()),
        };
        self.ports.iter().map(move |port| Observation {
            node: self.node.clone(),
            address: self.address,
            port,
            state: PortState::Unknown,
            evidence: evidence.clone(),
            attempts: self.attempts,
            service: None,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} open, {} closed, {} filtered", self.open, self.closed, self.filtered)?;
        for (count, state) in [(self.open_filtered, PortState::OpenFiltered), (self.unknown, PortState::Unknown)] {
            if count > 0 {
                write!(f, ", {count} {state}")?;
            }
        }
        Ok(())
    }
}

impl Tally {
    fn count(&mut self, state: PortState, targets: u64) {
        let counter = match state {
            PortState::Open => &mut self.open,
            PortState::Closed => &mut self.closed,
            PortState::Filtered => &mut self.filtered,
            PortState::OpenFiltered => &mut self.open_filtered,
            PortState::Unknown => &mut self.unknown,
        };
        *counter += targets;
    }
}

/// Sweeps `plan` with at most `in_flight` sockets.
pub async fn sweep(plan: &Plan, in_flight: usize, watch: &Watch) -> Result<Sweep, SweepError> {
    let (started, clock) = (Timestamp::now(), Instant::now());
    let mut seen = Seen::new(plan);
    let lanes::Lanes { syn, sockets } = lanes::prepare(plan, &mut seen).await?;
    let (events, found) = tokio::sync::mpsc::unbounded_channel();
    let notice = found::Notice::new(plan, events, watch.clone());
    let by_syn = syn.map(|driver| {
        let notice = notice.clone();
        tokio::task::spawn_blocking(move || driver.run(notice))
    });
    let by_sockets = sockets::run(sockets, notice, &plan.payloads, in_flight);
    let confirming = confirm::confirm(plan, found, &mut seen);
    let (by_sockets, ()) = tokio::join!(by_sockets, confirming);
    let by_syn = match by_syn {
        None => None,
        Some(driven) => Some(driven.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))),
    };
    let interrupted = *watch.stop.borrow();
    for driven in by_syn.into_iter().chain([by_sockets]) {
        if interrupted {
            seen.settle(&driven.engine);
        }
        seen.take(driven);
    }
    confirm::find_liars(plan, &mut seen).await;
    Ok(seen.finish(started, clock.elapsed(), interrupted))
}
