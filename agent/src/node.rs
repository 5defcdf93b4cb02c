//! This node under the agent's care: ledger, firewall and facts brought together. Every change of
//! the kernel goes through [`Node`], one at a time.

mod act;
mod answer;
#[cfg(test)]
mod authority;
mod health;
mod host;
#[cfg(test)]
mod protected;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use deadlight_shared::allowlist::today;
use deadlight_shared::wire::{Explanation, Mode};
use deadlight_shared::{Name, PortSet, hint};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio::task::block_in_place;

use crate::config::Config;
use crate::explain::{self, Question};
use crate::firewall::iptables::Save;
use crate::firewall::{Desired, Firewall, FirewallError, Inspection};
use crate::inventory::{Facts, Listener, NetlinkError, Networks};
use crate::ledger::{Ledger, LedgerError};
use crate::plan::Policy;

pub use act::{Hardened, Reverted, Selection};
pub use health::Health;
pub use host::{Docker, Host};

/// The node.
pub struct Node {
    name: Name,
    config: Config,
    firewall: Box<dyn Firewall + Sync>,
    host: Box<dyn Host>,
    state: Mutex<State>,
    /// An order was left pending, because another program was in the way.
    undone: Notify,
}

#[derive(Default)]
struct State {
    /// What Docker last told.
    networks: Option<Networks>,
    /// Who listened when last seen.
    listeners: Option<Vec<Listener>>,
    /// What was lost and put back since the last report, oldest first.
    drift: VecDeque<String>,
    /// How often that was so since this process began, reported or not.
    repairs: u64,
    /// When each scanner gave its last order to this process.
    orders: BTreeMap<Name, Timestamp>,
    /// A ledger that could not be saved.
    unsaved: Option<Unsaved>,
    /// What iptables-legacy had when it was last looked at, if there was nothing to do.
    well: Option<[Save; 2]>,
}

/// A ledger in memory that is newer than the one on disk, until somebody else writes that one.
struct Unsaved {
    ledger: Ledger,
    on_disk: Option<Ledger>,
}

/// Why the node could not be changed or looked at.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The ledger cannot be used.
    #[error("failed to use the ledger")]
    Ledger(#[from] LedgerError),
    /// The firewall cannot be read or written.
    #[error("failed to bring the rules into force")]
    Firewall(#[from] FirewallError),
    /// The listening sockets cannot be read, so sshd's ports are unknown.
    #[error("failed to see who holds the listening sockets, so protected ports are unknown")]
    Listeners(#[source] std::io::Error),
    /// The routes cannot be read, so the outside is unknown.
    #[error("failed to read the routes, so the outside is unknown")]
    Routes(#[source] NetlinkError),
    /// An order older than one that was taken, whose report is not at hand.
    #[error("the order is older than one that was taken before")]
    Stale,
}

impl NodeError {
    /// What an operator can do about it; none where it is no fault of the node.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Firewall(cause) => cause.remedy(),
            Self::Ledger(LedgerError::Corrupt { .. } | LedgerError::Version { .. }) => {
                "nothing was changed and the rules stand; move the file away to start with an empty ledger"
            }
            Self::Ledger(_) => "run as root, or set state_dir to a directory that can be written",
            Self::Listeners(_) => "run as root; with --helpers, see `systemctl status deadlight-listeners.socket`",
            Self::Routes(_) => "name the interfaces in the configuration: outside = [\"eth0\"]",
            Self::Stale => return None,
        })
    }
}

impl Node {
    /// This machine, with `firewall`.
    pub fn new(name: Name, config: Config, firewall: Box<dyn Firewall + Sync>) -> Self {
        let host = Box::new(host::Machine::new(&config));
        Self::on(host, name, config, firewall)
    }

    /// A node on `host`, with `firewall`.
    pub fn on(host: Box<dyn Host>, name: Name, config: Config, firewall: Box<dyn Firewall + Sync>) -> Self {
        Self { name, config, firewall, host, state: Mutex::default(), undone: Notify::new() }
    }

    /// The node's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Whether orders are carried out.
    pub fn mode(&self) -> Mode {
        self.config.mode
    }

    /// Waits until an order is left pending that a later look may carry out. One that was left since the last wait counts.
    pub async fn undone(&self) {
        self.undone.notified().await;
    }

    /// Why `question.port` is open and what Deadlight does or would do about it. Changes nothing.
    pub async fn explain(&self, question: Question) -> Result<Explanation, NodeError> {
        let mut state = self.state.lock().await;
        let port = question.port;
        let facts = self.gather(&mut state, [port].into_iter().collect()).await;
        let ledger = self.load(&state)?;
        let policy = self.policy(&self.listeners(&ledger)?, &ledger);
        let desired = self.desired(&ledger, &policy);
        let inspection = block_in_place(|| self.firewall.inspect(&desired))?;
        Ok(Explanation {
            schema: Explanation::SCHEMA.to_owned(),
            node: self.name.clone(),
            port,
            cause: explain::cause(question, &facts, &inspection.docker),
            path: explain::path(port, &inspection.docker),
            allowed_by: ledger.allowed_by(port, &policy.permitted),
            closed: desired.closed.contains(port) && inspection.change.is_empty(),
            refused: policy.protection(port).map(|reason| reason.to_string()),
            rules: self.firewall.lines_for(port, &desired, &inspection.docker),
        })
    }

    /// One look at the kernel, compared with what the ledger and the posture say. Changes nothing.
    pub async fn inspect(&self) -> Result<Inspection, NodeError> {
        let state = self.state_after_docker().await;
        let mut ledger = self.load(&state)?;
        let listeners = self.listeners(&ledger)?;
        self.take_posture(&mut ledger, &listeners)?;
        let policy = self.policy(&listeners, &ledger);
        Ok(block_in_place(|| self.firewall.inspect(&self.desired(&ledger, &policy)))?)
    }

    /// What shall stand. A port that became protected after it was closed is open again.
    fn desired(&self, ledger: &Ledger, policy: &Policy) -> Desired {
        let mut closed = ledger.closed();
        closed.extend(&self.config.closed(!ledger.peers.is_empty()));
        Desired {
            closed: closed.iter().filter(|port| policy.protection(*port).is_none()).collect(),
            armed: ledger.armed,
            outside: ledger.outside.clone(),
            trusted: self.config.trusted.clone(),
            peers: ledger.peers.keys().copied().collect(),
            docker_subnets: if ledger.docker_subnets.is_empty() {
                default_subnets()
            } else {
                ledger.docker_subnets.clone()
            },
            allowed: ledger.allowed(&policy.permitted),
            own: self.config.own_port(),
        }
    }

    fn policy(&self, listeners: &[Listener], ledger: &Ledger) -> Policy {
        let permitted = ledger.permitted(&self.config.operator(), &self.name, today(self.host.now()));
        self.config.policy(listeners, !ledger.peers.is_empty(), permitted)
    }

    /// Who listens. A port that Docker publishes is Docker's, whoever cannot be seen; one that is closed stays so.
    fn listeners(&self, ledger: &Ledger) -> Result<Vec<Listener>, NodeError> {
        let mut listeners = block_in_place(|| self.host.listeners()).map_err(NodeError::Listeners)?;
        if listeners.iter().any(|listener| listener.is_hidden) {
            let mut known = block_in_place(|| self.firewall.inspect(&Desired::default()))?.docker.published();
            known.extend(&ledger.closed());
            known.extend(&self.config.closed(!ledger.peers.is_empty()));
            listeners.iter_mut().for_each(|listener| listener.is_hidden &= !known.contains(listener.port));
        }
        Ok(listeners)
    }

    /// To put back what was lost, those of the last look will do: nothing opens because a helper is away.
    fn listeners_last_seen(&self, ledger: &Ledger, state: &mut State) -> Result<Vec<Listener>, NodeError> {
        match (self.listeners(ledger), &state.listeners) {
            (Ok(now), _) => Ok(state.listeners.insert(now).clone()),
            (Err(error), Some(last)) => {
                tracing::warn!("{}; as they were seen last", hint::line(&error));
                Ok(last.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The ledger, with the interfaces that face the outside now besides those that once did.
    fn load(&self, state: &State) -> Result<Ledger, NodeError> {
        let mut ledger = match &state.unsaved {
            Some(unsaved) if unsaved.on_disk == self.host.load().ok() => unsaved.ledger.clone(),
            _ => self.host.load()?,
        };
        if let Some(networks) = &state.networks {
            ledger.hear(networks, self.host.now());
        }
        match self.config.outside.is_empty() {
            true => ledger.outside.extend(block_in_place(|| self.host.outside()).map_err(NodeError::Routes)?),
            false => ledger.outside = self.config.outside.iter().cloned().collect(),
        }
        Ok(ledger)
    }

    /// Saves, or keeps the ledger in memory and says so: a full disk never opens a port.
    fn save(&self, ledger: &Ledger, state: &mut State) -> Option<LedgerError> {
        let error = block_in_place(|| self.host.save(ledger)).err();
        state.unsaved = error.is_some().then(|| Unsaved { ledger: ledger.clone(), on_disk: self.host.load().ok() });
        error
    }

    async fn gather(&self, state: &mut MutexGuard<'_, State>, ports: PortSet) -> Facts {
        let facts = self.host.facts(ports).await;
        if let Ok(docker) = &facts.docker {
            state.networks = Some(docker.networks.clone());
        }
        facts
    }

    /// The state, after Docker was asked for its subnets. Docker is asked first: one that hangs must
    /// not keep an order waiting.
    async fn state_after_docker(&self) -> MutexGuard<'_, State> {
        let heard = self.host.networks().await;
        let mut state = self.state.lock().await;
        match heard {
            Ok(networks) => state.networks = Some(networks),
            Err(error) => tracing::debug!(%error, "docker does not answer; its networks stay as last heard"),
        }
        state
    }
}

/// The range that Docker takes its bridge networks from by default, for when it cannot be asked.
fn default_subnets() -> Vec<IpNet> {
    "172.16.0.0/12".parse().into_iter().collect()
}

/// The error with its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    hint::render(error).trim_start_matches("error: ").to_owned()
}

/// The host name, where it can be a node name.
pub fn host_name() -> Option<Name> {
    std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).ok()?.trim().parse().ok()
}
