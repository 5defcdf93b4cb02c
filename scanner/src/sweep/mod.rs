//! One pass over all targets: the schedule's steps carried out with sockets and a clock.

mod rescan;
mod targets;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadlight_shared::{Evidence, Name, Observation, Port, PortSet, PortState, Protocol};
use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::net;
use crate::probe::{Lane, Probe, Schedule, Settled, Step};

pub use rescan::{Checked, Rescan, rescan};
pub use targets::{Target, TargetError, Unresolved, nodes_of};

/// What to sweep, and how fast.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The nodes.
    pub nodes: Vec<PlannedNode>,
    /// Probes a second, all nodes together.
    pub rate: NonZeroU32,
    /// Probes a second at one node.
    pub rate_per_node: Option<NonZeroU32>,
}

/// One node of a plan.
#[derive(Debug, Clone)]
pub struct PlannedNode {
    /// Its name.
    pub name: Name,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports asked at each address.
    pub ports: Arc<[Port]>,
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
    /// Addresses without a route: none of their ports was asked.
    pub unasked: Vec<Unasked>,
    /// Addresses at which at least one port answered or refused.
    pub heard: BTreeSet<IpAddr>,
    /// Counts over all targets.
    pub tally: Tally,
    /// Time spent.
    pub duration: Duration,
}

/// An address that could not be asked at all.
#[derive(Debug, Clone)]
pub struct Unasked {
    /// Node it belongs to.
    pub node: Name,
    /// The address.
    pub address: IpAddr,
    /// What the system said.
    pub reason: String,
    /// The ports that should have been asked.
    pub ports: Arc<[Port]>,
}

/// Counts over all targets of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// That could not be asked.
    pub unknown: u64,
    /// Connection attempts and datagrams.
    pub probes_sent: u64,
}

impl Unasked {
    /// One observation for each port that was not asked.
    pub fn observations(&self) -> impl Iterator<Item = Observation> + '_ {
        self.ports.iter().map(|&port| Observation {
            node: self.node.clone(),
            address: self.address,
            port,
            state: PortState::Unknown,
            evidence: Evidence::NotAsked(self.reason.clone()),
            attempts: 0,
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

/// The ports of a set in the order in which they are asked: UDP first, because its silence takes
/// longest and can be waited out while TCP is asked.
pub fn in_order(ports: &PortSet) -> Arc<[Port]> {
    let (udp, tcp): (Vec<Port>, Vec<Port>) = ports.iter().partition(|port| port.protocol == Protocol::Udp);
    udp.into_iter().chain(tcp).collect()
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

/// Sweeps `plan` with at most `in_flight` sockets; `settled` is told the number of targets that
/// are done, each time it grows.
pub async fn sweep(plan: &Plan, in_flight: usize, mut settled: impl FnMut(u64)) -> Sweep {
    let (started, clock) = (Timestamp::now(), Instant::now());
    let mut seen = Seen::new(plan);
    let lanes = seen.lanes();
    let mut schedule = Schedule::new(lanes, plan.rate, plan.rate_per_node);
    let mut asking: JoinSet<(Probe, net::Asked)> = JoinSet::new();
    loop {
        let due = match fill(&mut schedule, &mut asking, in_flight, &mut seen.tally) {
            Filled::Done => break,
            Filled::Wait(due) => due,
        };
        let outcome = tokio::select! {
            outcome = asking.join_next(), if !asking.is_empty() => outcome,
            () = sleep_until(due) => None,
        };
        let mut next = outcome;
        while let Some(joined) = next {
            let (probe, asked) = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            if let Some(verdict) = schedule.record(probe.clone(), asked.outcome, Instant::now()) {
                seen.keep(&probe, verdict);
            }
            next = asking.try_join_next();
        }
        settled(seen.settled());
    }
    seen.finish(started, clock.elapsed())
}

/// After everything that may start has been started.
enum Filled {
    /// Come back at this instant, or after the next outcome.
    Wait(Option<Instant>),
    /// Nothing is left.
    Done,
}

/// Starts as many probes as schedule and descriptors allow.
fn fill(
    schedule: &mut Schedule,
    asking: &mut JoinSet<(Probe, net::Asked)>,
    in_flight: usize,
    tally: &mut Tally,
) -> Filled {
    while asking.len() < in_flight {
        match schedule.next(Instant::now()) {
            Step::Ask(probe) => {
                tally.probes_sent += 1;
                asking.spawn(async move {
                    let asked = net::ask(probe.address, probe.port, attempt_limit(probe.port.protocol)).await;
                    (probe, asked)
                });
            }
            Step::Wait(due) => return Filled::Wait(due),
            Step::Done => return Filled::Done,
        }
    }
    Filled::Wait(None)
}

/// How long one attempt waits. A TCP attempt covers the kernel's own repetition of its SYN after 1 s.
fn attempt_limit(protocol: Protocol) -> Duration {
    match protocol {
        Protocol::Tcp => Duration::from_millis(1_500),
        Protocol::Udp => Duration::from_secs(1),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The nodes of a plan while they are swept.
struct Seen<'a> {
    nodes: &'a [PlannedNode],
    observations: Vec<(usize, Observation)>,
    unasked: Vec<Unasked>,
    heard: BTreeSet<IpAddr>,
    tally: Tally,
}

impl<'a> Seen<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self {
            nodes: &plan.nodes,
            observations: Vec::new(),
            unasked: Vec::new(),
            heard: BTreeSet::new(),
            tally: Tally::default(),
        }
    }

    /// One lane for each node, with the addresses that there is a way to.
    fn lanes(&mut self) -> Vec<Lane> {
        let mut lanes = Vec::new();
        for node in self.nodes {
            let mut addresses = Vec::new();
            for &address in &node.addresses {
                self.tally.targets += node.ports.len() as u64;
                match net::check_route(address) {
                    Ok(()) => addresses.push(address),
                    Err(error) => self.skip(node, address, &error),
                }
            }
            lanes.push(Lane { addresses, ports: Arc::clone(&node.ports) });
        }
        lanes
    }

    fn skip(&mut self, node: &PlannedNode, address: IpAddr, error: &std::io::Error) {
        self.tally.count(PortState::Unknown, node.ports.len() as u64);
        self.unasked.push(Unasked {
            node: node.name.clone(),
            address,
            reason: crate::probe::reason(error),
            ports: Arc::clone(&node.ports),
        });
    }

    fn settled(&self) -> u64 {
        let Tally { open, closed, filtered, open_filtered, unknown, .. } = self.tally;
        open + closed + filtered + open_filtered + unknown
    }

    fn keep(&mut self, probe: &Probe, Settled { state, evidence }: Settled) {
        let node = &self.nodes[probe.lane];
        self.tally.count(state, 1);
        if matches!(state, PortState::Open | PortState::Closed) {
            self.heard.insert(probe.address);
        }
        if !matches!(state, PortState::Closed | PortState::Filtered) || node.watched.contains(probe.port) {
            let node = node.name.clone();
            let (address, port, attempts) = (probe.address, probe.port, probe.attempts);
            self.observations.push((probe.lane, Observation { node, address, port, state, evidence, attempts }));
        }
    }

    fn finish(mut self, started: Timestamp, duration: Duration) -> Sweep {
        self.observations.sort_by_key(|(lane, seen)| (*lane, seen.address, seen.port));
        Sweep {
            started,
            finished: Timestamp::now(),
            observations: self.observations.into_iter().map(|(_, seen)| seen).collect(),
            unasked: self.unasked,
            heard: self.heard,
            tally: self.tally,
            duration,
        }
    }
}
