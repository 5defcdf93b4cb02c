//! Knows what is true, by itself, and what must hold at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use deadlight_scanner::prove::Verdict;
use deadlight_scanner::round::Contradiction;
use deadlight_scanner::store::State;
use deadlight_scanner::sweep::Checked;
use deadlight_shared::wire::{Order, OrderMark, OutcomeStatus, Report};
use deadlight_shared::{FindingId, FindingStatus, Name, Port, PortSet};

use crate::host::Machine;

/// A fact over time.
#[derive(Debug, Default)]
struct History(Vec<(Duration, bool)>);

impl History {
    fn set(&mut self, now: Duration, value: bool) {
        if self.0.last().is_none_or(|(_, last)| *last != value) {
            self.0.push((now, value));
        }
    }

    /// Whether it held at every moment from `from` to `to`, both included.
    fn held(&self, from: Duration, to: Duration) -> bool {
        let before = self.0.partition_point(|(at, _)| *at < from);
        let began = before.checked_sub(1).is_some_and(|last| self.0[last].1);
        began && self.0[before..].iter().take_while(|(at, _)| *at <= to).all(|(_, value)| *value)
    }
}

/// An agent's word, as a scanner took it.
#[derive(Debug)]
struct Claim {
    node: usize,
    address: IpAddr,
    port: Port,
    at: Duration,
}

/// What one machine has bound itself to.
#[derive(Debug, Default, Clone)]
struct Bond {
    /// Ports that it reported closed, and that nobody has allowed since.
    closed: BTreeSet<Port>,
    /// The latest order of each scanner that it answered.
    acted: BTreeMap<Name, OrderMark>,
}

#[derive(Debug, Default)]
struct OfScanner {
    allowed: PortSet,
    claims: Vec<Claim>,
    contradicted: BTreeSet<Contradiction>,
    /// Findings that its own probes have shown closed since they were last seen open.
    proven: BTreeSet<FindingId>,
    /// The same, as far as the disk has it.
    on_disk: BTreeSet<FindingId>,
    /// Nodes that it has heard or missed in this round.
    heard: BTreeSet<Name>,
}

#[derive(Debug)]
pub(crate) struct Oracle {
    names: Vec<Name>,
    own: Vec<PortSet>,
    protected: Vec<PortSet>,
    open: BTreeMap<(usize, Port), History>,
    clean: BTreeMap<(usize, usize), History>,
    scanners: Vec<OfScanner>,
    bonds: Vec<Bond>,
    /// Ports that were open on a node at some time although a scanner does not allow them.
    deserved: BTreeSet<(usize, Port)>,
    pub(crate) contradictions: u64,
    pub(crate) proofs: u64,
    pub(crate) alerts: u64,
}

impl Oracle {
    /// `own` are the ports that a scanner needs to be open on each node, `protected` those that nobody may shut.
    pub(crate) fn new(names: Vec<Name>, own: Vec<PortSet>, protected: Vec<PortSet>, allowed: Vec<PortSet>) -> Self {
        let scanners = allowed.into_iter().map(|allowed| OfScanner { allowed, ..OfScanner::default() }).collect();
        Self {
            bonds: vec![Bond::default(); names.len()],
            names,
            own,
            protected,
            open: BTreeMap::new(),
            clean: BTreeMap::new(),
            scanners,
            deserved: BTreeSet::new(),
            contradictions: 0,
            proofs: 0,
            alerts: 0,
        }
    }

    pub(crate) fn allow(&mut self, scanner: usize, port: Port) {
        self.scanners[scanner].allowed.insert(port);
    }

    fn is_expected(&self, scanner: usize, node: usize, port: Port) -> bool {
        self.scanners[scanner].allowed.contains(port) || self.own[node].contains(port)
    }

    /// Whether some scanner would have it closed.
    pub(crate) fn is_unexpected(&self, node: usize, port: Port) -> bool {
        (0..self.scanners.len()).any(|scanner| !self.is_expected(scanner, node, port))
    }

    /// Whether nobody may shut it.
    pub(crate) fn is_protected(&self, node: usize, port: Port) -> bool {
        self.protected[node].contains(port)
    }

    pub(crate) fn port_is(&mut self, now: Duration, node: usize, port: Port, open: bool) {
        self.open.entry((node, port)).or_default().set(now, open);
        if open && self.is_unexpected(node, port) {
            self.deserved.insert((node, port));
        }
    }

    pub(crate) fn way_is(&mut self, now: Duration, scanner: usize, node: usize, clean: bool) {
        self.clean.entry((scanner, node)).or_default().set(now, clean);
    }

    fn was_open(&self, scanner: usize, node: usize, port: Port, from: Duration, to: Duration) -> bool {
        let held = |history: Option<&History>| history.is_some_and(|history| history.held(from, to));
        held(self.open.get(&(node, port))) && held(self.clean.get(&(scanner, node)))
    }

    /// No protected port is shut, and none that was never open against somebody's allowlist.
    pub(crate) fn look_at(&self, node: usize, machine: &Machine) {
        for port in machine.tables.iter().flatten() {
            assert!(!self.is_protected(node, *port), "the protected {port} is shut on {}", self.names[node]);
            assert!(self.deserved.contains(&(node, *port)), "{port} is shut on {} for nothing", self.names[node]);
        }
    }

    /// Everything that was `asked` and is open where it should not be is told.
    pub(crate) fn swept(
        &mut self,
        scanner: usize,
        (from, to): (Duration, Duration),
        asked: &BTreeSet<(IpAddr, Port)>,
        exposed: &BTreeSet<FindingId>,
        addresses: &[Vec<IpAddr>],
    ) {
        self.alerts += exposed.len() as u64;
        for (node, port) in self.open.keys().copied() {
            if self.is_expected(scanner, node, port) || !self.was_open(scanner, node, port, from, to) {
                continue;
            }
            for address in addresses[node].iter().filter(|address| asked.contains(&(**address, port))) {
                let id = FindingId::of(&self.names[node], *address, port);
                assert!(exposed.contains(&id), "{port} is open at {address}, and scanner {scanner} does not say so");
            }
        }
        let of_scanner = &mut self.scanners[scanner];
        of_scanner.proven.retain(|id| !exposed.contains(id));
        of_scanner.claims.clear();
        of_scanner.contradicted.clear();
        of_scanner.heard.clear();
    }

    pub(crate) fn reported(&mut self, now: Duration, scanner: usize, report: &Report, order: &Order) {
        let node = self.names.iter().position(|name| *name == report.node).unwrap();
        let of_scanner = &mut self.scanners[scanner];
        of_scanner.heard.insert(report.node.clone());
        for outcome in report.outcomes.iter().filter(|outcome| outcome.status == OutcomeStatus::Enforced) {
            if let Some(finding) = order.findings.iter().find(|finding| finding.id == outcome.finding) {
                of_scanner.claims.push(Claim { node, address: finding.address, port: finding.port(), at: now });
            }
        }
    }

    pub(crate) fn unanswered(&mut self, scanner: usize, node: &Name) {
        self.scanners[scanner].heard.insert(node.clone());
    }

    pub(crate) fn contradicted(&mut self, scanner: usize, contradiction: &Contradiction) {
        self.contradictions += 1;
        self.scanners[scanner].contradicted.insert(contradiction.clone());
    }

    /// What is said to be closed was not open all the while.
    pub(crate) fn checked(&mut self, scanner: usize, (from, to): (Duration, Duration), checked: &[Checked]) {
        for Checked { node, address, port, verdict } in checked {
            if !matches!(verdict, Verdict::Closed(_)) {
                continue;
            }
            let index = self.names.iter().position(|name| name == node).unwrap();
            let open = self.open.get(&(index, *port)).is_some_and(|history| history.held(from, to));
            assert!(!open, "scanner {scanner} calls {port} at {address} closed, and it is open");
            self.proofs += 1;
            self.scanners[scanner].proven.insert(FindingId::of(node, *address, *port));
        }
    }

    /// Who says closed and is not is named in the same round, and each agent was heard or missed.
    pub(crate) fn ended(&self, now: Duration, scanner: usize) {
        let of_scanner = &self.scanners[scanner];
        for Claim { node, address, port, at } in &of_scanner.claims {
            if self.was_open(scanner, *node, *port, *at, now) {
                let (node, address, port) = (self.names[*node].clone(), *address, *port);
                let contradiction = Contradiction { node, address, port };
                let told = of_scanner.contradicted.contains(&contradiction);
                assert!(told, "scanner {scanner} does not tell {contradiction:?}");
            }
        }
        for name in &self.names {
            assert!(of_scanner.heard.contains(name), "scanner {scanner} says nothing about the agent of {name}");
        }
    }

    /// What is on a scanner's disk as resolved was proven by it.
    pub(crate) fn kept(&mut self, scanner: usize, state: &State) {
        for finding in &state.findings {
            let is_resolved = finding.status == FindingStatus::Resolved;
            let proven = !is_resolved || self.scanners[scanner].proven.contains(&finding.id);
            assert!(proven, "scanner {scanner} has resolved without a proof: {finding:?}");
            let is_told = state.episodes.contains_key(&finding.id);
            assert_eq!(
                is_told,
                !finding.status.is_over(),
                "scanner {scanner} tells its beginning and its end: {finding:?}"
            );
        }
        self.scanners[scanner].on_disk = self.scanners[scanner].proven.clone();
    }

    /// A scanner knows what is on its disk.
    pub(crate) fn starts(&mut self, scanner: usize) {
        self.scanners[scanner].proven = self.scanners[scanner].on_disk.clone();
    }

    /// What a scanner has proven, as far as its disk has it: to go with a backup of that.
    pub(crate) fn proven_on_disk(&self, scanner: usize) -> BTreeSet<FindingId> {
        self.scanners[scanner].on_disk.clone()
    }

    pub(crate) fn restored(&mut self, scanner: usize, proven: BTreeSet<FindingId>) {
        self.scanners[scanner].on_disk = proven;
    }

    /// A copy of `machine` with its disk.
    pub(crate) fn cloned(&mut self, machine: usize) {
        self.bonds.push(self.bonds[machine].clone());
    }

    /// Whether `machine` must leave `order` alone, because it answered a later one, or this one.
    pub(crate) fn is_old(&self, machine: usize, order: &Order) -> bool {
        let mark = OrderMark { epoch: order.epoch, sequence: order.sequence };
        self.bonds[machine].acted.get(&order.scanner).is_some_and(|acted| mark <= *acted)
    }

    /// `order` reaches an honest agent that has not answered a later one.
    pub(crate) fn ordered(&mut self, machine: usize, order: &Order) {
        self.bonds[machine].closed.retain(|port| !order.allow.contains(*port));
    }

    pub(crate) fn answered(&mut self, machine: usize, order: &Order, report: &Report) {
        let bond = &mut self.bonds[machine];
        let enforced = report.outcomes.iter().filter(|outcome| outcome.status == OutcomeStatus::Enforced);
        bond.closed.extend(enforced.map(deadlight_shared::wire::Outcome::port));
        bond.acted.insert(order.scanner.clone(), report.order);
    }

    /// An agent's process ended, and its disk has not all that it knew.
    pub(crate) fn forgot(&mut self, machine: usize) {
        self.bonds[machine] = Bond::default();
    }

    /// An agent has looked at its kernel and found it well.
    pub(crate) fn well(&self, index: usize, node: usize, machine: &Machine) {
        for table in &machine.tables {
            let missing: Vec<_> = self.bonds[index].closed.difference(table).collect();
            assert!(missing.is_empty(), "{} reported {missing:?} closed, and leaves it open", self.names[node]);
        }
    }
}
