//! Who may stand in the door.
//!
//! Strangers share slots, few for each network they come from; where scanners call from, and those who have proven
//! who they are, have slots of their own. Where slots are taken the oldest goes, never the newest: a real handshake
//! is over after one round trip, and who stands longer is waiting for something else.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use deadlight_shared::Identity;
use deadlight_shared::wire::Callers;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Slots in all, and of these for one network or identity.
#[derive(Debug, Clone, Copy)]
struct Room {
    slots: usize,
    each: usize,
}

/// Of one network.
const STRANGERS_EACH: usize = 8;
const EXPECTED: Room = Room { slots: 64, each: 8 };
const PROVEN: Room = Room { slots: 64, each: 8 };

/// A connection; later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The connections that stand in the door. What is kept of one is dropped when it has to go.
#[derive(Debug)]
pub(super) struct Door<T> {
    scanners: Vec<IpNet>,
    strangers: Lane<IpNet, T>,
    /// Not yet proven either, but from where scanners call: a flood of others does not reach them.
    expected: Lane<IpNet, T>,
    proven: Lane<Identity, T>,
    last: Ticket,
    callers: Callers,
}

impl<T> Door<T> {
    /// An empty one, with slots for so many `strangers`. `scanners` are the networks that scanners call from.
    pub(super) fn new(scanners: Vec<IpNet>, strangers: usize) -> Self {
        Self::with_rooms(scanners, Room { slots: strangers, each: STRANGERS_EACH }, EXPECTED, PROVEN)
    }

    fn with_rooms(scanners: Vec<IpNet>, strangers: Room, expected: Room, proven: Room) -> Self {
        Self {
            scanners,
            strangers: Lane::new(strangers),
            expected: Lane::new(expected),
            proven: Lane::new(proven),
            last: Ticket(0),
            callers: Callers::default(),
        }
    }

    /// Lets in a connection from `address`, in the place of an older one if need be.
    pub(super) fn enter(&mut self, address: IpAddr, connection: T) -> Ticket {
        let address = address.to_canonical();
        self.last.0 += 1;
        let is_expected = self.scanners.iter().any(|network| network.contains(&address));
        let lane = if is_expected { &mut self.expected } else { &mut self.strangers };
        if lane.enter(self.last, network(address), connection) {
            self.callers.evicted += 1;
            self.callers.strangers += 1;
        }
        self.last
    }

    /// The connection has shown the certificate of `identity` and gives its slot back to those who have not. False when
    /// it had to go before.
    pub(super) fn prove(&mut self, ticket: Ticket, identity: Identity) -> bool {
        let Some(connection) = self.strangers.leave(ticket).or_else(|| self.expected.leave(ticket)) else {
            return false;
        };
        self.callers.proven += 1;
        if self.proven.enter(ticket, identity, connection) {
            self.callers.evicted += 1;
        }
        true
    }

    /// The connection has ended.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        let stranger = self.strangers.leave(ticket).or_else(|| self.expected.leave(ticket));
        self.callers.strangers += u64::from(stranger.is_some());
        self.proven.leave(ticket);
    }

    /// A handler has panicked, and with it one connection ended.
    pub(super) fn panicked(&mut self) {
        self.callers.panics += 1;
    }

    /// Who came so far.
    pub(super) fn callers(&self) -> Callers {
        self.callers
    }
}

/// Slots that are given to the newest.
#[derive(Debug)]
struct Lane<K, T> {
    room: Room,
    standing: BTreeMap<Ticket, (K, T)>,
    /// The same by network or identity.
    alike: HashMap<K, BTreeSet<Ticket>>,
}

impl<K: Clone + Eq + Hash, T> Lane<K, T> {
    fn new(room: Room) -> Self {
        Self { room, standing: BTreeMap::new(), alike: HashMap::new() }
    }

    /// Whether somebody else had to go: of those with the same `key` where they are too many, else of all.
    fn enter(&mut self, ticket: Ticket, key: K, connection: T) -> bool {
        let oldest = match self.alike.get(&key) {
            Some(alike) if alike.len() >= self.room.each => alike.first().copied(),
            _ if self.standing.len() >= self.room.slots => self.standing.keys().next().copied(),
            _ => None,
        };
        let gone = oldest.and_then(|oldest| self.leave(oldest));
        self.alike.entry(key.clone()).or_default().insert(ticket);
        self.standing.insert(ticket, (key, connection));
        gone.is_some()
    }

    fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let (key, connection) = self.standing.remove(&ticket)?;
        if let Entry::Occupied(mut alike) = self.alike.entry(key) {
            alike.get_mut().remove(&ticket);
            if alike.get().is_empty() {
                alike.remove();
            }
        }
        Some(connection)
    }
}

/// What is taken for one stranger: whoever has one address there, has many.
fn network(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(address) => Ipv4Net::new_assert(address, 24).trunc().into(),
        IpAddr::V6(address) => Ipv6Net::new_assert(address, 56).trunc().into(),
    }
}

#[cfg(test)]
mod tests;
