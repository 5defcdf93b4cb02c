//! The half of Deadlight outside the cluster: finds open ports, has them closed, proves it.

pub mod alert;
pub mod assess;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod identify;
pub mod lease;
pub mod line;
pub mod net;
pub mod permits;
pub mod pki;
pub mod probe;
pub mod prove;
pub mod pull;
pub mod round;
pub mod schedule;
pub mod store;
pub mod sweep;
pub mod upkeep;
pub mod view;
pub mod web;
