//! What changes the node: reconciling, and an operator's own commands.

use std::fs::File;

use deadlight_shared::wire::Mode;
use deadlight_shared::{Port, PortSet, hint};
use jiff::Timestamp;
use tokio::task::block_in_place;

use super::{Node, NodeError, State};
use crate::firewall::{Change, Inspection};
use crate::inventory::{Facts, Listener, conntrack, interfaces, listeners};
use crate::ledger::{Closure, Ledger, Origin};
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
    /// Published ports that are closed now.
    pub closed: PortSet,
    /// Published ports that were left open although nobody allowed them, with the reason.
    pub refused: Vec<String>,
    /// What was written; for a dry run, what would be.
    pub written: Vec<Change>,
}

impl Node {
    /// Puts the guard in place before there is anything to close. In observe mode, nothing is done.
    pub async fn arm(&self) -> Result<Vec<Change>, NodeError> {
        if self.config.mode == Mode::Enforce {
            let mut state = self.state.lock().await;
            let _lock = self.lock()?;
            let mut ledger = self.load(&state)?;
            ledger.armed = true;
            if let Some(error) = self.save(&ledger, &mut state) {
                tracing::error!("state not persisted: {}", hint::render(&error));
            }
        }
        self.reconcile().await
    }

    /// Puts back whatever is missing from the kernel. In observe mode, nothing is done.
    pub async fn reconcile(&self) -> Result<Vec<Change>, NodeError> {
        if self.config.mode == Mode::Observe {
            return Ok(Vec::new());
        }
        let mut state = self.state.lock().await;
        self.hear_docker(&mut state).await;
        let _lock = self.lock()?;
        let ledger = self.load(&state)?;
        if state.unsaved.is_some() && self.save(&ledger, &mut state).is_none() {
            tracing::info!("the state directory can be written again");
        }
        Ok(self.enforce(&ledger, &state)?.written)
    }

    /// Opens again what the agent closed. An operator's local command, whatever the mode.
    pub async fn revert(&self, selection: Selection) -> Result<Vec<Change>, NodeError> {
        let mut state = self.state.lock().await;
        self.hear_docker(&mut state).await;
        let _lock = self.lock()?;
        let mut ledger = self.load(&state)?;
        match selection {
            Selection::Port(port) => ledger.closures.retain(|closure| closure.port != port),
            Selection::All => ledger.forget(),
        }
        block_in_place(|| self.store.save(&ledger))?;
        Ok(self.enforce(&ledger, &state)?.written)
    }

    /// Closes everything published but `allow`. An operator's local command, whatever the mode.
    pub async fn harden(&self, allow: &PortSet, dry_run: bool) -> Result<Hardened, NodeError> {
        let mut state = self.state.lock().await;
        let facts = self.gather(&mut state).await;
        let _lock = self.lock()?;
        let old = self.load(&state)?;
        let inspection = block_in_place(|| self.firewall.inspect(&self.desired(&old, &state)))?;
        let published = published(&inspection, &facts);
        let policy = self.policy()?;
        let mut ledger = old.clone();
        ledger.allowed_locally = allow.clone();
        ledger.closures.retain(|closure| !allow.contains(closure.port));
        let mut refused = Vec::new();
        for port in published.iter().filter(|port| !allow.contains(*port)) {
            match policy.protection(port) {
                Some(reason) => refused.push(reason.to_string()),
                None => ledger.close(Closure { port, origin: Origin::Local, since: Timestamp::now() }),
            }
        }
        let written = match dry_run {
            true => {
                let change = block_in_place(|| self.firewall.inspect(&self.desired(&ledger, &state)))?.change;
                Some(change).filter(|change| !change.is_empty()).into_iter().collect()
            }
            false => {
                if ledger != old {
                    block_in_place(|| self.store.save(&ledger))?;
                }
                self.enforce(&ledger, &state)?.written
            }
        };
        Ok(Hardened { closed: ledger.closed(), refused, written })
    }

    pub(super) fn enforce(&self, ledger: &Ledger, state: &State) -> Result<Reconciled, NodeError> {
        let listeners = block_in_place(listeners::read).map_err(NodeError::Listeners)?;
        let policy = self.config.policy(&listeners);
        let desired = self.desired(ledger, state);
        let is_protected = |port| policy.protection(port).is_some();
        let reconciled = block_in_place(|| converge(&*self.firewall, &desired, is_protected))?;
        if !reconciled.written.is_empty() {
            block_in_place(|| forget_reversed(&listeners, &desired.closed));
        }
        Ok(reconciled)
    }

    pub(super) fn lock(&self) -> Result<Option<File>, NodeError> {
        Ok(block_in_place(|| self.store.lock())?)
    }
}

/// After the guard stands, so that no such entry comes to be again.
fn forget_reversed(listeners: &[Listener], closed: &PortSet) {
    let addresses: Vec<_> = interfaces::addresses().into_iter().map(|(_, address)| address).collect();
    let forgotten = conntrack::dump().and_then(|flows| {
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
/// docker-proxy and dockerd, which serve IPv6 where Docker writes no IPv6 rules.
fn published(inspection: &Inspection, facts: &Facts) -> PortSet {
    let mut ports = inspection.docker.published();
    if let Ok(docker) = &facts.docker {
        ports.extend(&docker.containers.iter().flat_map(|container| container.published.iter().copied()).collect());
        ports.extend(&docker.services.iter().flatten().flat_map(|service| service.ingress.iter().copied()).collect());
    }
    let is_dockers = |listener: &&Listener| {
        let program = listener.process.as_ref().map(|process| process.program.as_str());
        matches!(program, Some("docker-proxy" | "dockerd")) && !listener.address.is_loopback()
    };
    let listeners = facts.listeners.iter().flatten();
    ports.extend(&listeners.filter(is_dockers).map(|listener| listener.port).collect());
    ports
}
