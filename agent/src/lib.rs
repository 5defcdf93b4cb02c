//! The agent: says why a port of this node is open, and closes it.

pub mod firewall;
pub mod ledger;
pub mod plan;
pub mod reconcile;
