//! What a sweep has seen so far.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use deadlight_shared::{Evidence, Observation, Port, PortSet, PortState, Protocol};
use jiff::Timestamp;

use super::found::{Driven, Found};
use super::{Known, Plan, PlannedNode, Sweep, Tally, Unasked};
use crate::probe::{Engine, Lane, Leftover, Loss};

pub(super) struct Seen<'a> {
    nodes: &'a [PlannedNode],
    observations: Vec<(usize, Observation)>,
    unasked: Vec<Unasked>,
    heard: BTreeSet<IpAddr>,
    liars: BTreeMap<IpAddr, usize>,
    notes: Vec<String>,
    settled: BTreeMap<IpAddr, Known>,
    tally: Tally,
}

impl<'a> Seen<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        Self {
            nodes: &plan.nodes,
            observations: Vec::new(),
            unasked: Vec::new(),
            heard: BTreeSet::new(),
            liars: BTreeMap::new(),
            notes: Vec::new(),
            settled: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    /// Counts the targets of one address.
    pub(super) fn plan(&mut self, targets: usize) {
        self.tally.targets += targets as u64;
    }

    /// Counts what is known about `address` from before.
    pub(super) fn know(&mut self, address: IpAddr, known: &Known) {
        self.tally.count(PortState::Closed, known.closed.len() as u64);
        self.tally.count(PortState::Filtered, known.filtered.len() as u64);
        if !known.closed.is_empty() {
            self.heard.insert(address);
        }
        self.settled.insert(address, known.clone());
    }

    /// Keeps what `engine` has settled, for a sweep that goes on from here.
    pub(super) fn settle(&mut self, engine: &Engine) {
        for (index, lane) in engine.lanes().enumerate() {
            let watched = &self.nodes[lane.node].watched;
            let of_lane = |ports: Vec<u16>| -> PortSet {
                let ports = ports.into_iter().filter_map(|port| Port::new(lane.protocol, port));
                ports.filter(|port| !watched.contains(*port)).collect()
            };
            let known = self.settled.entry(lane.address).or_default();
            known.closed.extend(&of_lane(engine.closed(index)));
            if lane.protocol == Protocol::Tcp {
                known.filtered.extend(&of_lane(engine.silent_for_sure(index)));
            }
        }
    }

    /// An address without a route: none of its ports is asked.
    pub(super) fn skip(&mut self, node: &PlannedNode, address: IpAddr, error: &io::Error) {
        self.tally.count(PortState::Unknown, node.ports.len() as u64);
        let (node, ports, reason) = (node.name.clone(), node.ports.clone(), crate::probe::reason(error));
        self.unasked.push(Unasked { node, address, reason, ports, attempts: 0 });
    }

    /// A lane whose next hop is silent: none of its ports can be asked.
    pub(super) fn unreached(&mut self, lane: &Lane, reason: String) {
        let ports: PortSet = lane.ports.iter().filter_map(|port| Port::new(lane.protocol, *port)).collect();
        self.tally.count(PortState::Unknown, ports.len() as u64);
        let (node, address) = (self.nodes[lane.node].name.clone(), lane.address);
        self.unasked.push(Unasked { node, address, reason, ports, attempts: 0 });
    }

    /// What the reader should know about how it was asked.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// An address that answers where nothing can be.
    pub(super) fn liar(&mut self, address: IpAddr, open: usize) {
        self.liars.insert(address, open);
    }

    /// Keeps what was found, as `state` for the reason of `evidence`.
    pub(super) fn keep(&mut self, found: &Found, state: PortState, evidence: Evidence, service: Option<String>) {
        self.tally.count(state, 1);
        let Found { node, address, port, attempts, .. } = *found;
        if state == PortState::Closed && !self.nodes[node].watched.contains(port) {
            return;
        }
        let name = self.nodes[node].name.clone();
        self.observations.push((node, Observation { node: name, address, port, state, evidence, attempts, service }));
    }

    /// Takes over what a driver has counted, and what did not answer.
    pub(super) fn take(&mut self, driven: Driven) {
        self.heard.extend(driven.heard);
        self.tally.count(PortState::Closed, driven.closed);
        self.tally.probes_sent += driven.sent;
        self.tally.dropped += driven.dropped;
        let Loss { asked, lost } = driven.engine.loss();
        self.tally.controls += u64::from(asked);
        self.tally.lost += u64::from(lost);
        for (index, left) in driven.engine.leftovers() {
            self.take_silence(driven.engine.lane(index), left);
        }
    }

    /// Open TCP ports, by address.
    pub(super) fn open_tcp(&self) -> BTreeMap<IpAddr, Vec<(usize, Port)>> {
        let mut open: BTreeMap<IpAddr, Vec<(usize, Port)>> = BTreeMap::new();
        for (node, seen) in &self.observations {
            if seen.state == PortState::Open && seen.port.protocol == Protocol::Tcp {
                open.entry(seen.address).or_default().push((*node, seen.port));
            }
        }
        open
    }

    pub(super) fn finish(mut self, started: Timestamp, duration: Duration, interrupted: bool) -> Sweep {
        self.observations.sort_by_key(|(node, seen)| (*node, seen.address, seen.port));
        Sweep {
            started,
            finished: Timestamp::now(),
            observations: self.observations.into_iter().map(|(_, seen)| seen).collect(),
            unasked: self.unasked,
            heard: self.heard,
            liars: self.liars,
            notes: self.notes,
            interrupted,
            settled: if interrupted { self.settled } else { BTreeMap::new() },
            tally: self.tally,
            duration,
        }
    }

    fn take_silence(&mut self, lane: &Lane, left: Leftover) {
        let Leftover { ports, unreachable, attempts, unknown } = left;
        let ports: PortSet = ports.into_iter().filter_map(|port| Port::new(lane.protocol, port)).collect();
        let node = &self.nodes[lane.node];
        let targets = ports.len() as u64;
        if let Some(reason) = unknown {
            self.tally.count(PortState::Unknown, targets);
            let (name, address) = (node.name.clone(), lane.address);
            self.unasked.push(Unasked { node: name, address, reason, ports, attempts });
            return;
        }
        let (state, evidence) = match (lane.protocol, unreachable) {
            (_, true) => (PortState::Filtered, Evidence::Unreachable),
            (Protocol::Tcp, false) => (PortState::Filtered, Evidence::Silence),
            (Protocol::Udp, false) => (PortState::OpenFiltered, Evidence::Silence),
        };
        self.tally.count(state, targets);
        for port in ports.iter().filter(|port| state == PortState::OpenFiltered || node.watched.contains(*port)) {
            let (evidence, address) = (evidence.clone(), lane.address);
            let name = node.name.clone();
            let seen = Observation { node: name, address, port, state, evidence, attempts, service: None };
            self.observations.push((lane.node, seen));
        }
    }
}
