//! The agent: says why a port of this node is open, and closes it.
//!
//! `plan`, `explain`, `reconcile` and the renderers under `firewall` are pure; [`node`] brings
//! them together with the kernel, Docker and the ledger; `api` and `cli` are its two doors, and `metrics` is a window.

pub mod api;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod explain;
pub mod firewall;
pub mod gate;
pub mod helper;
pub mod identity;
pub mod inventory;
pub mod ledger;
pub mod metrics;
pub mod node;
pub mod plan;
pub mod reconcile;
