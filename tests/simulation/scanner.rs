//! A scanner's process: its rounds are the product's own, between its clock, disk and packets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadlight_scanner::config::{Config, Node};
use deadlight_scanner::prove::Window;
use deadlight_scanner::round::{Scope, Turn};
use deadlight_scanner::store::{Location, State, Store};
use deadlight_scanner::sweep::{Rescan, Sweep, Tally};
use deadlight_shared::wire::{Order, Report};
use deadlight_shared::{
    AllowEntry, Allowlist, Evidence, FindingId, Name, Observation, Port, PortSet, PortState, Protocol,
};
use jiff::{SignedDuration, Timestamp};

use crate::course::EVERY;
use crate::host::Clock;

/// What a scanner's disk holds.
#[derive(Debug, Default)]
pub(crate) struct DiskState {
    pub(crate) state: State,
    pub(crate) full: bool,
    /// Whether a write came to its end since this was last asked.
    pub(crate) written: bool,
    /// Writes that the process has left to live.
    pub(crate) fuel: Option<u32>,
    pub(crate) dead: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Disk(pub(crate) Arc<Mutex<DiskState>>);

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    /// Writes what `store` has for it, all of it or nothing.
    pub(crate) fn write(&self, store: &mut Store) {
        let mut disk = self.0.lock().unwrap();
        match disk.fuel {
            Some(0) => disk.dead = true,
            Some(left) => disk.fuel = Some(left - 1),
            None => {}
        }
        if disk.dead || disk.full {
            return;
        }
        store.unsaved().iter().for_each(|record| disk.state.apply(record));
        store.saved();
        disk.written = true;
    }
}

pub(crate) struct Scanner {
    pub(crate) config: Config,
    pub(crate) disk: Disk,
    pub(crate) store: Option<Store>,
    pub(crate) clock_off: SignedDuration,
    /// Tells events of this process from those of one that is gone.
    pub(crate) life: u64,
    pub(crate) phase: Phase,
    pub(crate) round_began: Duration,
    /// States as they were, each with what was proven by then.
    pub(crate) backups: Vec<(Duration, State, BTreeSet<FindingId>)>,
    pub(crate) rounds: u64,
}

pub(crate) enum Phase {
    Idle,
    Sweeping(Sweeping),
    Ordering { turn: Turn, orders: BTreeMap<Name, Order>, answers: BTreeMap<Name, Result<Report, io::Error>> },
    Looking(Looking),
}

/// A sweep on its way: each target has an instant, and those that keep silent are asked at the later ones too.
pub(crate) struct Sweeping {
    pub(crate) scope: Scope,
    pub(crate) began: Duration,
    pub(crate) started: Timestamp,
    pub(crate) targets: Vec<Target>,
    pub(crate) heard: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) node: usize,
    pub(crate) address: IpAddr,
    pub(crate) port: Port,
    pub(crate) watched: bool,
    /// The instant at which it is asked first.
    pub(crate) instant: u8,
    pub(crate) state: Option<PortState>,
}

/// A second look on its way.
pub(crate) struct Looking {
    pub(crate) turn: Turn,
    pub(crate) rescans: Vec<Rescan>,
    pub(crate) windows: Vec<Window>,
    pub(crate) began: Duration,
    pub(crate) source_port: u16,
    pub(crate) wake: Option<Duration>,
}

/// The agent's port of every node.
pub(crate) const AGENT: &str = "7443/tcp";

impl Scanner {
    pub(crate) fn new(name: &str, nodes: Vec<Node>, ports: &PortSet, allow: &PortSet) -> Self {
        let rate = NonZeroU32::new(10_000).unwrap();
        let config = Config {
            lease: Duration::from_secs(60),
            seconded: false,
            most: u64::MAX,
            vantage: name.parse().unwrap(),
            every: EVERY,
            quick: EVERY,
            ports: ports.clone(),
            rate,
            rate_per_node: rate,
            identify: false,
            payloads: None,
            nodes,
            allowlist: Allowlist::new(vec![entry(allow.clone())]),
            signed: "permits.json".into(),
            trust: None,
            pull: ([127, 0, 0, 1], 7_444).into(),
            sinks: Vec::new(),
            store: Location::File("deadlight.db".into()),
            web: None,
            heartbeat: None,
            keep: SignedDuration::from_hours(9_600),
        };
        Self {
            config,
            disk: Disk::default(),
            store: None,
            clock_off: SignedDuration::ZERO,
            life: 0,
            phase: Phase::Idle,
            round_began: Duration::ZERO,
            backups: Vec::new(),
            rounds: 0,
        }
    }

    pub(crate) fn wall(&self, clock: &Clock) -> Timestamp {
        *clock.lock().unwrap() + self.clock_off
    }

    pub(crate) fn allow(&mut self, allowed: PortSet) {
        self.config.allowlist = Allowlist::new(vec![entry(allowed)]);
    }

    /// A new process begins.
    pub(crate) fn start(&mut self, clock: &Clock) {
        self.stop();
        let now = self.wall(clock);
        let mut disk = self.disk.0.lock().unwrap();
        (disk.dead, disk.fuel) = (false, None);
        self.store = Some(Store::new(disk.state.clone(), now));
    }

    /// The process is gone, with everything that was only in its memory.
    pub(crate) fn stop(&mut self) {
        self.life += 1;
        self.store = None;
        self.phase = Phase::Idle;
    }
}

fn entry(ports: PortSet) -> AllowEntry {
    let (owner, reason) = ("operator".to_owned(), "intended".to_owned());
    AllowEntry { ports, nodes: vec!["*".to_owned()], labels: Vec::new(), owner, reason, expires: None }
}

impl Sweeping {
    /// What the product makes of such a sweep: see `sweep/seen.rs`.
    pub(crate) fn finish(self, names: &[Name], finished: Timestamp, took: Duration) -> Sweep {
        let mut tally = Tally { targets: self.targets.len() as u64, ..Tally::default() };
        let mut observations = Vec::new();
        for Target { node, address, port, watched, state, .. } in self.targets {
            let silent = match port.protocol {
                Protocol::Tcp => PortState::Filtered,
                Protocol::Udp => PortState::OpenFiltered,
            };
            let state = state.unwrap_or(silent);
            let (counter, evidence) = match (state, port.protocol) {
                (PortState::Open, Protocol::Tcp) => (&mut tally.open, Evidence::SynAck),
                (PortState::Open, Protocol::Udp) => (&mut tally.open, Evidence::UdpReply),
                (PortState::Closed, _) => (&mut tally.closed, Evidence::Rst),
                (PortState::OpenFiltered, _) => (&mut tally.open_filtered, Evidence::Silence),
                _ => (&mut tally.filtered, Evidence::Silence),
            };
            *counter += 1;
            if watched || matches!(state, PortState::Open | PortState::OpenFiltered) {
                let node = names[node].clone();
                observations.push(Observation { node, address, port, state, evidence, attempts: 1, service: None });
            }
        }
        Sweep {
            started: self.started,
            finished,
            observations,
            unasked: Vec::new(),
            heard: self.heard,
            liars: BTreeMap::new(),
            notes: Vec::new(),
            interrupted: false,
            settled: BTreeMap::new(),
            tally,
            duration: took,
        }
    }
}
