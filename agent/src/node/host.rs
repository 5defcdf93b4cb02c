//! What a node stands on besides its firewall: the disk, sockets, routes, Docker and the clock.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;

use deadlight_shared::{Port, PortSet, hint};
use jiff::Timestamp;

use crate::config::Config;
use crate::inventory::docker::{self, DockerError};
use crate::inventory::{Facts, Flow, Listener, NetlinkError, Networks, conntrack, interfaces, listeners};
use crate::ledger::{Ledger, LedgerError, Store};
use crate::plan;

/// An answer of Docker's, which may take two seconds.
pub type Docker<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Everything that a [`Node`](super::Node) asks and changes outside of itself, so that a death between any two
/// of these calls can be played.
pub trait Host: Send + Sync {
    /// The time of day, right or wrong.
    fn now(&self) -> Timestamp;

    /// Keeps other processes from the ledger as long as the guard lives.
    fn lock(&self) -> Result<Option<File>, LedgerError>;

    /// The ledger on disk.
    fn load(&self) -> Result<Ledger, LedgerError>;

    /// Replaces the ledger on disk, whole or not at all.
    fn save(&self, ledger: &Ledger) -> Result<(), LedgerError>;

    /// All listening sockets with their processes.
    fn listeners(&self) -> io::Result<Vec<Listener>>;

    /// Interfaces that face the outside now.
    fn outside(&self) -> Result<BTreeSet<String>, NetlinkError>;

    /// The node's addresses, each with its interface.
    fn addresses(&self) -> Vec<(String, IpAddr)>;

    /// Forgets sessions of `closed` ports that are tracked the wrong way round.
    fn forget_reversed(&self, listeners: &[Listener], closed: &PortSet);

    /// What Docker says that rules are made from.
    fn networks(&self) -> Docker<'_, Result<Networks, DockerError>>;

    /// Everything that may explain `ports`.
    fn facts(&self, ports: PortSet) -> Docker<'_, Facts>;
}

/// This very machine.
pub(super) struct Machine {
    store: Store,
    config: Config,
}

impl Machine {
    pub(super) fn new(config: &Config) -> Self {
        Self { store: Store::new(&config.state_dir), config: config.clone() }
    }
}

impl Host for Machine {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn lock(&self) -> Result<Option<File>, LedgerError> {
        self.store.lock()
    }

    fn load(&self) -> Result<Ledger, LedgerError> {
        self.store.load()
    }

    fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        self.store.save(ledger)
    }

    fn listeners(&self) -> io::Result<Vec<Listener>> {
        listeners::read(&self.config.listeners)
    }

    fn outside(&self) -> Result<BTreeSet<String>, NetlinkError> {
        interfaces::with_default_route()
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        interfaces::addresses()
    }

    fn forget_reversed(&self, listeners: &[Listener], closed: &PortSet) {
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
            tracing::warn!("{}: sessions older than all tracking may live on", hint::line(&error));
        }
    }

    fn networks(&self) -> Docker<'_, Result<Networks, DockerError>> {
        Box::pin(docker::networks(&self.config.docker_socket))
    }

    fn facts(&self, ports: PortSet) -> Docker<'_, Facts> {
        Box::pin(Facts::gather(&self.config, ports))
    }
}
