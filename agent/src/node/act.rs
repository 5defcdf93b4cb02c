//! What changes the node: reconciling, and an operator's own commands.

use std::fs::File;

use deadlight_shared::wire::Mode;
use deadlight_shared::{Port, PortSet, hint};
use jiff::Timestamp;
use tokio::task::block_in_place;

use super::{Node, NodeError, State};
use crate::firewall::{Change, Inspection};
use crate::inventory::{Facts, Flow, Listener, conntrack, interfaces};
use crate::ledger::{Closure, Ledger, LedgerError, Origin};
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
        ledger.armed |= arm;
        if state.unsaved.is_some() || ledger != self.store.load()? {
            match self.save(&ledger, state) {
                None => tracing::debug!("ledger saved"),
                Some(error) => tracing::error!("state not persisted: {}", hint::render(&error)),
            }
        }
        let sessions = if arm { Sessions::Sever } else { Sessions::SeverOnChange };
        Ok(self.enforce(&ledger, &self.listeners()?, sessions)?.written)
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
        let written = self.enforce(&ledger, &self.listeners()?, Sessions::SeverOnChange)?.written;
        Ok(Reverted { written, unsaved })
    }

    /// Closes everything published but `allow`. An operator's local command, whatever the mode.
    pub async fn harden(&self, allow: &PortSet, dry_run: bool) -> Result<Hardened, NodeError> {
        let mut state = self.state.lock().await;
        let facts = self.gather(&mut state, PortSet::default()).await;
        let _lock = self.lock()?;
        let (mut ledger, listeners) = (self.load(&state)?, self.listeners()?);
        let policy = self.config.policy(&listeners);
        let inspection = block_in_place(|| self.firewall.inspect(&self.desired(&ledger, &policy)))?;
        let published = published(&inspection, &facts);
        ledger.armed = true;
        ledger.allowed_locally = allow.clone();
        ledger.closures.retain(|closure| !allow.contains(closure.port));
        let mut refused = Vec::new();
        for port in published.iter().filter(|port| !allow.contains(*port)) {
            match policy.protection(port) {
                Some(reason) => refused.push(reason.to_string()),
                None => ledger.close(Closure { port, origin: Origin::Local, since: Timestamp::now() }),
            }
        }
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
        let changed = state.unsaved.is_some() || ledger != self.store.load()?;
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
        let policy = self.config.policy(listeners);
        let desired = self.desired(ledger, &policy);
        let is_protected = |port| policy.protection(port).is_some();
        let reconciled = block_in_place(|| converge(&*self.firewall, &desired, is_protected));
        let unchanged = reconciled.as_ref().is_ok_and(|reconciled| reconciled.written.is_empty());
        if sessions == Sessions::Sever || !unchanged {
            block_in_place(|| forget_reversed(listeners, &desired.closed));
        }
        Ok(reconciled?)
    }

    pub(super) fn lock(&self) -> Result<Option<File>, NodeError> {
        Ok(block_in_place(|| self.store.lock())?)
    }
}

/// After the guard stands, so that no such entry comes to be again.
fn forget_reversed(listeners: &[Listener], closed: &PortSet) {
    let addresses: Vec<_> = interfaces::addresses().into_iter().map(|(_, address)| address).collect();
    let leaves_closed =
        |flow: &Flow| Port::new(flow.protocol, flow.source.port()).is_some_and(|port| closed.contains(port));
    let forgotten = conntrack::dump(leaves_closed).and_then(|flows| {
        plan::reversed(&flows, listeners, &addresses, closed).try_for_each(|flow| {
            tracing::info!(?flow, "a session of a closed port was tracked the wrong way round");
            conntrack::forget(flow)
        })
    });
    if let Err(error) = forgotten {
        tracing::warn!("{}: sessions older than all tracking may live on", hint::render(&error));
    }
}

/// Every port that Docker publishes: by its rules, by its own word, and by the sockets of
/// docker-proxy, which serve IPv6 where Docker writes no IPv6 rules.
fn published(inspection: &Inspection, facts: &Facts) -> PortSet {
    let mut ports = inspection.docker.published();
    if let Ok(docker) = &facts.docker {
        ports.extend(&docker.containers.iter().flat_map(|container| container.published.iter().copied()).collect());
        ports.extend(&docker.services.iter().flatten().flat_map(|service| service.ingress.iter().copied()).collect());
    }
    let is_proxy = |listener: &&Listener| {
        listener.process.as_ref().is_some_and(|process| process.program == "docker-proxy")
            && !listener.address.is_loopback()
    };
    ports.extend(&facts.listeners.iter().flatten().filter(is_proxy).map(|listener| listener.port).collect());
    ports
}
