//! What shall stay closed, by whose word: the agent's memory, written before the kernel is.

mod permits;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use deadlight_shared::wire::{Order, OrderMark, Report};
use deadlight_shared::{Name, Port, PortSet, SignedPermit};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::inventory::Networks;

#[cfg(test)]
pub(crate) use permits::tests::signed;
pub use permits::{PermitRefusal, Permitted};
pub use store::{LedgerError, Store};

/// So that the ledger is not written anew each time Docker is asked.
const PEER_NEWS: SignedDuration = SignedDuration::from_mins(10);
const PEER_LIFE: SignedDuration = SignedDuration::from_hours(24);

/// The whole ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    schema: String,
    /// Whether the guard stands even with nothing to close.
    pub armed: bool,
    /// Interfaces that face the outside or once did: one that lost its route is outside again when
    /// the route comes back.
    pub outside: BTreeSet<String>,
    /// Subnets of the node's own containers as Docker last told them: an engine that is away changes
    /// nothing.
    pub docker_subnets: Vec<IpNet>,
    /// The swarm's nodes, each with the time when Docker last told it, to within ten minutes.
    pub peers: BTreeMap<IpAddr, Timestamp>,
    /// Closed ports, one entry each.
    pub closures: Vec<Closure>,
    /// When orders closed ports that were open, as far as the budget still counts it.
    pub spent: Vec<Timestamp>,
    /// Ports that `harden --allow` or the configuration named.
    #[serde(with = "deadlight_shared::port_set::as_items")]
    pub allowed_locally: PortSet,
    /// The newest order of each scanner, with the report it was answered.
    pub orders: BTreeMap<Name, Answered>,
    /// By operator's key, the permit with the highest number that came.
    permits: BTreeMap<String, SignedPermit>,
}

/// One closed port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closure {
    /// The published port.
    pub port: Port,
    /// By whose word.
    pub origin: Origin,
    /// Since when.
    pub since: Timestamp,
}

/// By whose word a port is closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The order of this scanner.
    Order(Name),
    /// An operator on this node, by `harden`.
    Local,
    /// The configuration: its posture is `allowlist`.
    Posture,
}

/// An order that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// Its place among the scanner's orders.
    pub mark: OrderMark,
    /// Ports that it allows; [`Permitted`] says what that is worth.
    #[serde(with = "deadlight_shared::port_set::as_items")]
    allow: PortSet,
    /// The answer; missing while the order is being carried out.
    pub report: Option<Report>,
}

impl Answered {
    /// `order`, about to be carried out.
    pub fn begun(order: &Order) -> Self {
        let mark = OrderMark { epoch: order.epoch, sequence: order.sequence };
        Self { mark, allow: order.allow.clone(), report: None }
    }
}

impl Ledger {
    const SCHEMA: &str = "deadlight.ledger/v1";

    /// Whether it is of the version that this program writes.
    fn is_current(&self) -> bool {
        self.schema == Self::SCHEMA
    }

    /// Whether `port` is closed.
    pub fn is_closed(&self, port: Port) -> bool {
        self.closures.iter().any(|closure| closure.port == port)
    }

    /// All closed ports.
    pub fn closed(&self) -> PortSet {
        self.closures.iter().map(|closure| closure.port).collect()
    }

    /// By whose word `port` may be open.
    pub fn allowed_by(&self, port: Port, permitted: &Permitted) -> Vec<String> {
        let here = self.allowed_locally.contains(port).then(|| "allowed on this node".to_owned());
        let scanners = self.orders.iter().filter(|(_, order)| permitted.by_answered(order).contains(port));
        here.into_iter().chain(scanners.map(|(name, _)| format!("allowed by scanner {name}"))).collect()
    }

    /// All ports that are allowed, on this node or by a scanner.
    pub fn named(&self, permitted: &Permitted) -> PortSet {
        let mut named = self.allowed_locally.clone();
        self.orders.values().for_each(|order| named.extend(&permitted.by_answered(order)));
        named
    }

    /// All allowed ports, less those that are closed.
    pub fn allowed(&self, permitted: &Permitted) -> PortSet {
        self.named(permitted).iter().filter(|port| !self.is_closed(*port)).collect()
    }

    /// Forgets everything but which orders were answered and which permits came, so that none can be replayed.
    pub fn forget(&mut self) {
        let mut orders = std::mem::take(&mut self.orders);
        orders.values_mut().for_each(|order| order.allow = PortSet::default());
        *self = Self { orders, permits: std::mem::take(&mut self.permits), ..Self::default() };
    }

    /// What `scanner` allowed counts no more: another order stands for it.
    pub fn supersede(&mut self, scanner: &Name) {
        if let Some(order) = self.orders.get_mut(scanner) {
            order.allow = PortSet::default();
        }
    }

    /// Takes in what Docker tells: the node's subnets and the swarm's nodes. A node that is no longer
    /// told stays for a day: an engine that has just started knows few of them.
    pub fn hear(&mut self, networks: &Networks, now: Timestamp) {
        self.docker_subnets.clone_from(&networks.subnets);
        for &peer in &networks.peers {
            let heard = self.peers.entry(peer).or_insert(now);
            if now.duration_since(*heard) > PEER_NEWS {
                *heard = now;
            }
        }
        self.peers.retain(|_, heard| now.duration_since(*heard) < PEER_LIFE);
    }

    /// Adds a closure. One that stands keeps its date; a local word outlives an order's.
    pub fn close(&mut self, closure: Closure) {
        match self.closures.iter_mut().find(|standing| standing.port == closure.port) {
            Some(standing) if closure.origin == Origin::Local => standing.origin = Origin::Local,
            Some(_) => {}
            None => self.closures.push(closure),
        }
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            armed: false,
            outside: BTreeSet::new(),
            docker_subnets: Vec::new(),
            peers: BTreeMap::new(),
            closures: Vec::new(),
            spent: Vec::new(),
            allowed_locally: PortSet::default(),
            orders: BTreeMap::new(),
            permits: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_no_longer_told_stays_for_a_day() {
        let networks = |peers: &[&str]| Networks {
            peers: peers.iter().map(|peer| peer.parse().unwrap()).collect(),
            ..Networks::default()
        };
        let after = |hours| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
        let mut ledger = Ledger::default();
        ledger.hear(&networks(&["198.51.100.11", "2001:db8:51::12"]), after(0));
        let before = ledger.clone();
        ledger.hear(&networks(&["198.51.100.11"]), after(0) + SignedDuration::from_mins(1));
        assert_eq!(ledger, before, "nothing to write");
        ledger.hear(&networks(&["198.51.100.11"]), after(0) + SignedDuration::from_mins(10));
        assert_eq!(ledger, before, "to within ten minutes");
        ledger.hear(&networks(&["198.51.100.11"]), after(23));
        assert_eq!(ledger.peers.len(), 2);
        ledger.hear(&networks(&["198.51.100.11"]), after(24));
        assert_eq!(ledger.peers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["198.51.100.11"]);
        ledger.hear(&Networks::default(), after(48));
        assert!(ledger.peers.is_empty());
    }
    #[test]
    fn a_closure_keeps_its_date_and_a_local_word_outlives_an_orders() {
        let at = |hours| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
        let mut ledger = Ledger::default();
        let mut closed_by = |origin: &Origin, port: &str, hours| {
            ledger.close(Closure { port: port.parse().unwrap(), origin: origin.clone(), since: at(hours) });
            ledger.closures.clone()
        };
        let [order, other] = ["office-a", "office-b"].map(|name| Origin::Order(name.parse().unwrap()));
        let closure =
            |origin: &Origin| Closure { port: "80/tcp".parse().unwrap(), origin: origin.clone(), since: at(0) };
        assert_eq!(closed_by(&order, "80/tcp", 0), [closure(&order)]);
        for again in [&order, &other, &Origin::Posture] {
            assert_eq!(closed_by(again, "80/tcp", 1), [closure(&order)]);
        }
        assert_eq!(closed_by(&Origin::Local, "80/tcp", 2), [closure(&Origin::Local)]);
        assert_eq!(closed_by(&order, "80/tcp", 3), [closure(&Origin::Local)]);
        assert_eq!(closed_by(&order, "80/udp", 4).len(), 2, "another port");
    }

    #[test]
    fn what_is_forgotten_allows_nothing_and_is_not_played_again() {
        let mut order: Order =
            serde_json::from_str(include_str!("../../../shared/src/wire/golden/order.json")).unwrap();
        order.allow = "80/tcp".parse().unwrap();
        let mut ledger = Ledger { armed: true, allowed_locally: "81/tcp".parse().unwrap(), ..Ledger::default() };
        ledger.close(Closure { port: "82/tcp".parse().unwrap(), origin: Origin::Local, since: Timestamp::UNIX_EPOCH });
        ledger.orders.insert(order.scanner.clone(), Answered::begun(&order));
        assert_eq!(ledger.allowed(&Permitted::All).to_string(), "80-81/tcp");
        ledger.forget();
        assert_eq!((ledger.allowed(&Permitted::All), ledger.closed()), (PortSet::default(), PortSet::default()));
        assert!(!ledger.armed);
        let mark = OrderMark { epoch: order.epoch, sequence: order.sequence };
        assert_eq!(ledger.orders[&order.scanner].mark, mark);
    }

    #[test]
    fn who_allows_a_port_is_told_by_name() {
        let mut order: Order =
            serde_json::from_str(include_str!("../../../shared/src/wire/golden/order.json")).unwrap();
        (order.scanner, order.allow) = ("office-a".parse().unwrap(), "80-81/tcp".parse().unwrap());
        let mut ledger = Ledger { allowed_locally: "81/tcp".parse().unwrap(), ..Ledger::default() };
        ledger.orders.insert(order.scanner.clone(), Answered::begun(&order));
        let by = |port: &str, permitted: &Permitted| ledger.allowed_by(port.parse().unwrap(), permitted);
        assert_eq!(by("80/tcp", &Permitted::All), ["allowed by scanner office-a"]);
        assert_eq!(by("81/tcp", &Permitted::All), ["allowed on this node", "allowed by scanner office-a"]);
        assert_eq!(by("81/tcp", &Permitted::default()), ["allowed on this node"], "not signed by the operator");
        assert!(by("82/tcp", &Permitted::All).is_empty());
    }
}
