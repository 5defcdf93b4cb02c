//! What shall stay closed, by whose word: the agent's memory, written before the kernel is.

mod store;

use std::collections::{BTreeMap, BTreeSet};

use deadlight_shared::wire::{OrderMark, Report};
use deadlight_shared::{Name, Port, PortSet};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use store::{LedgerError, Store};

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
    /// Closed ports, one entry each.
    pub closures: Vec<Closure>,
    /// When orders closed ports that were open, as far as the budget still counts it.
    pub spent: Vec<Timestamp>,
    /// Ports that `harden --allow` named.
    #[serde(with = "deadlight_shared::port_set::as_items")]
    pub allowed_locally: PortSet,
    /// The newest order of each scanner, with the report it was answered.
    pub orders: BTreeMap<Name, Answered>,
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
}

/// An order that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// Its place among the scanner's orders.
    pub mark: OrderMark,
    /// Ports that it allows.
    #[serde(with = "deadlight_shared::port_set::as_items")]
    pub allow: PortSet,
    /// The answer; missing while the order is being carried out.
    pub report: Option<Report>,
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

    /// All allowed ports, less those that are closed.
    pub fn allowed(&self) -> PortSet {
        let mut named = self.allowed_locally.clone();
        self.orders.values().for_each(|order| named.extend(&order.allow));
        named.iter().filter(|port| !self.is_closed(*port)).collect()
    }

    /// Forgets everything but which orders were answered, so that none can be replayed.
    pub fn forget(&mut self) {
        let mut orders = std::mem::take(&mut self.orders);
        orders.values_mut().for_each(|order| order.allow = PortSet::default());
        *self = Self { orders, ..Self::default() };
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
            closures: Vec::new(),
            spent: Vec::new(),
            allowed_locally: PortSet::default(),
            orders: BTreeMap::new(),
        }
    }
}
