//! How the node is. Changes nothing.

use std::collections::BTreeMap;

use deadlight_shared::Name;
use deadlight_shared::wire::{ClosedPort, Mode, Status};
use jiff::Timestamp;
use tokio::task::block_in_place;

use super::{Node, NodeError, State, chain};
use crate::config::SwarmControl;
use crate::firewall::Inspection;
use crate::ledger::Ledger;

/// The state of health, with what this process alone has counted.
#[derive(Debug)]
pub struct Health {
    /// What scanners are told.
    pub status: Status,
    /// Lines of our own rules that stand.
    pub owned: usize,
    /// How often rules were lost and put back since the process began.
    pub repairs: u64,
    /// When each scanner gave its last order since then.
    pub orders: BTreeMap<Name, Timestamp>,
}

impl Node {
    /// The node's state of health, as scanners are told.
    pub async fn status(&self) -> Result<Status, NodeError> {
        Ok(self.health().await?.status)
    }

    /// The node's state of health.
    pub async fn health(&self) -> Result<Health, NodeError> {
        // First, as in every look: an engine that hangs must not keep an order waiting.
        let docker = self.host.networks().await;
        let state = self.state.lock().await;
        let ledger = self.load(&state)?;
        let policy = self.policy(&self.listeners(&ledger)?, &ledger);
        let desired = self.desired(&ledger, &policy);
        let inspection = block_in_place(|| self.firewall.inspect(&desired));
        let mut problems = self.own_concerns(&state, &ledger);
        if let Err(error) = self.config.operator() {
            problems.push(format!("{}: allowlists open nothing meanwhile", chain(&error)));
        }
        if let Err(error) = docker {
            problems.push(format!("{error}; causes read unknown meanwhile"));
        }
        let (mut dropped, mut owned) = (BTreeMap::new(), 0);
        let in_force = match inspection {
            Ok(Inspection { fault: Some(error), .. }) | Err(error) => {
                problems.push(format!("{error}; {}", error.remedy()));
                false
            }
            Ok(inspection) => {
                (dropped, owned) = (inspection.dropped, inspection.owned.len());
                if !inspection.change.is_empty() {
                    problems.push("the kernel's rules differ from the ledger; `deadlight-agent plan` shows".to_owned());
                }
                inspection.change.is_empty()
            }
        };
        let closed =
            desired.closed.iter().map(|port| ClosedPort { port, dropped: dropped.get(&port).copied().unwrap_or(0) });
        let status = Status {
            schema: Status::SCHEMA.to_owned(),
            node: self.name.clone(),
            mode: self.config.mode,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            closed: closed.collect(),
            in_force,
            drift: state.drift.iter().cloned().collect(),
            door: self.config.scanners.iter().map(ToString::to_string).collect(),
            callers: None,
            problems,
        };
        Ok(Health { status, owned, repairs: state.repairs, orders: state.orders.clone() })
    }

    /// What in the configuration, the ledger or the disk keeps the agent from doing all that it should.
    pub async fn concerns(&self) -> Result<Vec<String>, NodeError> {
        let state = self.state.lock().await;
        Ok(self.own_concerns(&state, &self.load(&state)?))
    }

    fn own_concerns(&self, state: &State, ledger: &Ledger) -> Vec<String> {
        let mut concerns = Vec::new();
        if state.unsaved.is_some() {
            concerns.push("state not persisted: the state directory cannot be written".to_owned());
        }
        if self.config.swarm_control == SwarmControl::Peers && ledger.peers.is_empty() {
            concerns
                .push("swarm_control = \"peers\", but no node of the swarm is known: its ports stay open".to_owned());
        }
        if let Ok(Some(key)) = self.config.operator()
            && ledger.permit(&key, &self.name).is_none()
        {
            concerns.push(
                "no signed allowlist has come: scanners open nothing; `deadlight-scanner allowlist sign`".to_owned(),
            );
        }
        if self.config.mode == Mode::Observe && !self.config.scanners.is_empty() {
            concerns.push("observe mode writes no rule: `scanners` does not shut the agent's port yet".to_owned());
        }
        concerns
    }
}
