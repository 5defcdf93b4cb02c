//! What changes the node: reconciling, and an operator's own commands.

use std::fs::File;

use deadlight_shared::wire::Mode;
use deadlight_shared::{Port, PortSet, hint};
use tokio::task::block_in_place;

use super::{Node, NodeError, State};
use crate::config::Posture;
use crate::firewall::iptables::Save;
use crate::firewall::{Change, Inspection};
use crate::inventory::{DockerFacts, Listener};
use crate::ledger::{Ledger, LedgerError, Origin};
use crate::plan;
use crate::reconcile::{Reconciled, converge};

/// What to revert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// One port.
    Port(Port),
    /// Everything: the tables are left as if the agent had never run.
    All,
}

/// The end of `harden`.
#[derive(Debug)]
pub struct Hardened {
    /// Ports that are closed now.
    pub closed: PortSet,
    /// Published ports that were left open although nobody allowed them, with the reason.
    pub refused: Vec<String>,
    /// What was written; for a dry run, what would be.
    pub written: Vec<Change>,
    /// Why the ledger could not be saved; the rules stand until an agent with another ledger runs.
    pub unsaved: Option<LedgerError>,
}

/// The end of `revert`.
#[derive(Debug)]
pub struct Reverted {
    /// What was written.
    pub written: Vec<Change>,
    /// Why the ledger could not be saved: a running agent will close again what it holds.
    pub unsaved: Option<LedgerError>,
}

/// When to look for sessions that are tracked the wrong way round: it lists every tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sessions {
    /// Now: an earlier attempt may have been cut short.
    Sever,
    /// If rules had to be written.
    SeverOnChange,
}

/// Repairs that are remembered until they are reported.
const DRIFT_KEPT: usize = 20;

impl Node {
    /// Puts the guard in place before there is anything to close. In observe mode, nothing is done.
    pub async fn arm(&self) -> Result<Vec<Change>, NodeError> {
        self.reconcile_from(&mut *self.state_after_docker().await, true)
    }

    /// Puts back whatever is missing from the kernel. In observe mode, nothing is done.
    pub async fn reconcile(&self) -> Result<Vec<Change>, NodeError> {
        self.reconcile_from(&mut *self.state_after_docker().await, false)
    }

    /// As [`reconcile`](Self::reconcile), from the ledger alone: Docker is not asked, so it may not
    /// have started yet, and an answer is never waited for.
    pub async fn restore(&self) -> Result<Vec<Change>, NodeError> {
        self.reconcile_from(&mut *self.state.lock().await, false)
    }

    fn reconcile_from(&self, state: &mut State, arm: bool) -> Result<Vec<Change>, NodeError> {
        if self.config.mode == Mode::Observe {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let mut ledger = self.load(state)?;
        let listeners = self.listeners_last_seen(&ledger, state)?;
        ledger.armed |= arm;
        self.take_posture(&mut ledger, &listeners)?;
        if state.unsaved.is_some() || ledger != self.host.load()? {
            match self.save(&ledger, state) {
                None => tracing::debug!("ledger saved"),
                Some(error) => tracing::error!("state not persisted: {}", hint::line(&error)),
            }
        }
        let sessions = if arm { Sessions::Sever } else { Sessions::SeverOnChange };
        state.well = None;
        let Reconciled { inspection, written } = self.enforce(&ledger, &listeners, sessions)?;
        state.well = inspection.legacy.filter(|_| written.is_empty());
        Ok(written)
    }

    /// Whether the last look found these tables of iptables-legacy, and nothing to do about them. Only what that look has read
    /// itself counts: whoever takes a rule away and puts it back, as dockerd does, shows each reader something else.
    pub async fn is_well(&self, legacy: &[Save; 2]) -> bool {
        self.config.mode == Mode::Observe || self.state.lock().await.well.as_ref() == Some(legacy)
    }

    /// Brings into the ledger what the configured posture says of the ports that are published now. Docker
    /// is not asked: its rules and docker-proxy's sockets tell all that is open.
    pub(super) fn take_posture(&self, ledger: &mut Ledger, listeners: &[Listener]) -> Result<(), NodeError> {
        if self.config.posture == Posture::Reported {
            ledger.closures.retain(|closure| closure.origin != Origin::Posture);
            return Ok(());
        }
        ledger.allowed_locally = self.config.allow.clone();
        let policy = self.policy(listeners, ledger);
        let allow = ledger.named(&policy.permitted);
        ledger.closures.retain(|closure| closure.origin != Origin::Posture || !allow.contains(closure.port));
        let inspection = block_in_place(|| self.firewall.inspect(&self.desired(ledger, &policy)))?;
        let published = published(&inspection, listeners, None);
        plan::close_published(&published, &allow, &Origin::Posture, &policy, ledger, self.host.now());
        Ok(())
    }

    /// Logs what was put back, and keeps it for the next report.
    pub async fn remember_drift(&self, written: &[Change], author: &str) {
        for line in written.iter().flat_map(Change::lines) {
            tracing::warn!(line, author, "drift repaired");
        }
        if let [first, ..] = written {
            let state = &mut *self.state.lock().await;
            let programs = first.steps.iter().filter_map(|step| step.program.first()).map(String::as_str);
            let by = programs.collect::<Vec<_>>().join(", ");
            state.drift.push_back(format!(
                "{}: rules were lost and put back by {by}; likely author: {author}",
                self.host.now()
            ));
            state.drift.drain(..state.drift.len().saturating_sub(DRIFT_KEPT));
            state.repairs += 1;
        }
    }

    /// Opens again what the agent closed. An operator's local command, whatever the mode.
    pub async fn revert(&self, selection: Selection) -> Result<Reverted, NodeError> {
        let mut state = self.state_after_docker().await;
        let _lock = self.lock()?;
        let mut ledger = self.load(&state)?;
        match selection {
            Selection::Port(port) => ledger.closures.retain(|closure| closure.port != port),
            Selection::All => ledger.forget(),
        }
        let unsaved = self.save(&ledger, &mut state);
        let written = self.enforce(&ledger, &self.listeners(&ledger)?, Sessions::SeverOnChange)?.written;
        Ok(Reverted { written, unsaved })
    }

    /// Closes everything published but `allow`. An operator's local command, whatever the mode.
    pub async fn harden(&self, allow: &PortSet, dry_run: bool) -> Result<Hardened, NodeError> {
        let mut state = self.state.lock().await;
        let facts = self.gather(&mut state, PortSet::default()).await;
        let _lock = self.lock()?;
        let mut ledger = self.load(&state)?;
        let listeners = self.listeners(&ledger)?;
        let policy = self.policy(&listeners, &ledger);
        let inspection = block_in_place(|| self.firewall.inspect(&self.desired(&ledger, &policy)))?;
        let published = published(&inspection, &listeners, facts.docker.as_ref().ok());
        ledger.armed = true;
        ledger.allowed_locally = allow.clone();
        ledger.closures.retain(|closure| !allow.contains(closure.port));
        let refused = plan::close_published(&published, allow, &Origin::Local, &policy, &mut ledger, self.host.now());
        let desired = self.desired(&ledger, &policy);
        let closed = desired.closed.clone();
        if dry_run {
            let inspection = block_in_place(|| self.firewall.inspect(&desired))?;
            if let Some(fault) = inspection.fault {
                return Err(fault.into());
            }
            let written = Some(inspection.change).filter(|change| !change.is_empty()).into_iter().collect();
            return Ok(Hardened { closed, refused, written, unsaved: None });
        }
        let changed = state.unsaved.is_some() || ledger != self.host.load()?;
        let unsaved = if changed { self.save(&ledger, &mut state) } else { None };
        let written = self.enforce(&ledger, &listeners, Sessions::Sever)?.written;
        Ok(Hardened { closed, refused, written, unsaved })
    }

    pub(super) fn enforce(
        &self,
        ledger: &Ledger,
        listeners: &[Listener],
        sessions: Sessions,
    ) -> Result<Reconciled, NodeError> {
        let policy = self.policy(listeners, ledger);
        let desired = self.desired(ledger, &policy);
        let is_protected = |port| policy.protection(port).is_some();
        let reconciled = block_in_place(|| converge(&*self.firewall, &desired, is_protected));
        let unchanged = reconciled.as_ref().is_ok_and(|reconciled| reconciled.written.is_empty());
        // After the guard stands, so that no such entry comes to be again.
        if sessions == Sessions::Sever || !unchanged {
            block_in_place(|| self.host.forget_reversed(listeners, &desired.closed));
        }
        Ok(reconciled?)
    }

    pub(super) fn lock(&self) -> Result<Option<File>, NodeError> {
        Ok(block_in_place(|| self.host.lock())?)
    }
}

/// Every port that Docker publishes: by its rules, by its own word, and by the sockets of
/// docker-proxy, which serve IPv6 where Docker writes no IPv6 rules.
fn published(inspection: &Inspection, listeners: &[Listener], docker: Option<&DockerFacts>) -> PortSet {
    let mut ports = inspection.docker.published();
    if let Some(docker) = docker {
        ports.extend(&docker.containers.iter().flat_map(|container| container.published.iter().copied()).collect());
        ports.extend(&docker.services.iter().flatten().flat_map(|service| service.ingress.iter().copied()).collect());
    }
    let is_proxy = |listener: &&Listener| {
        listener.process.as_ref().is_some_and(|process| process.program == "docker-proxy")
            && !listener.address.is_loopback()
    };
    ports.extend(&listeners.iter().filter(is_proxy).map(|listener| listener.port).collect());
    ports
}

#[cfg(test)]
mod tests;
