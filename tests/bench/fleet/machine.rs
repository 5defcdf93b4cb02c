//! A simulated machine under an agent: its port is one of the kernel's, disk and Docker are in memory.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use deadlight_agent::{
    firewall::{Change, Desired, DockerRules, Firewall, FirewallError, Inspection, Step},
    inventory::{DockerFacts, Facts, Listener, NetlinkError, Networks, docker::DockerError},
    ledger::{Ledger, LedgerError},
    node::{Docker, Host},
};
use deadlight_shared::{Port, PortSet};
use jiff::Timestamp;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::net::TcpListener;

use super::EXPOSED;

/// The interface that an agent takes for the one to the outside.
pub(super) const OUTSIDE: &str = "eth0";

/// The machine, for the agent that looks at it and for the firewall that changes it.
#[derive(Debug, Clone)]
pub(super) struct Rig(Arc<Machine>);

#[derive(Debug)]
struct Machine {
    address: IpAddr,
    exposed: Arc<TcpListener>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    disk: Ledger,
    shut: BTreeSet<Port>,
    closed: Option<Timestamp>,
}

impl Rig {
    /// Something listens at `address`; inside of a runtime.
    pub(super) fn start(address: IpAddr) -> Result<Self> {
        let exposed = Arc::new(listen(SocketAddr::new(address, EXPOSED)).with_context(|| address.to_string())?);
        let accepting = Arc::clone(&exposed);
        tokio::spawn(async move { while accepting.accept().await.is_ok() {} });
        Ok(Self(Arc::new(Machine { address, exposed, state: Mutex::default() })))
    }

    /// When the firewall shut the port.
    pub(super) fn closed(&self) -> Option<Timestamp> {
        self.state().closed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

impl Host for Rig {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn lock(&self) -> Result<Option<File>, LedgerError> {
        Ok(None)
    }

    fn load(&self) -> Result<Ledger, LedgerError> {
        Ok(self.state().disk.clone())
    }

    fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        self.state().disk = ledger.clone();
        Ok(())
    }

    fn listeners(&self) -> io::Result<Vec<Listener>> {
        Ok(Vec::new())
    }

    fn outside(&self) -> Result<BTreeSet<String>, NetlinkError> {
        Ok([OUTSIDE.to_owned()].into())
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        vec![(OUTSIDE.to_owned(), self.0.address)]
    }

    fn forget_reversed(&self, _listeners: &[Listener], _closed: &PortSet) {}

    fn networks(&self) -> Docker<'_, Result<Networks, DockerError>> {
        Box::pin(std::future::ready(Ok(Networks::default())))
    }

    fn facts(&self, _ports: PortSet) -> Docker<'_, Facts> {
        let docker = Ok(DockerFacts::default());
        let addresses = vec![self.0.address];
        Box::pin(std::future::ready(Facts { flows: Ok(Vec::new()), listeners: Ok(Vec::new()), docker, addresses }))
    }
}

impl Firewall for Rig {
    fn inspect(&self, desired: &Desired) -> Result<Inspection, FirewallError> {
        let (wanted, mut inspection) = (desired.closed.iter().collect::<BTreeSet<_>>(), Inspection::default());
        if self.state().shut != wanted {
            let script = format!("shut {}\n", desired.closed);
            let ports = wanted.into_iter().collect();
            inspection.change.steps.push(Step { program: vec!["simulated".to_owned()], script, ports });
        }
        Ok(inspection)
    }

    fn apply(&self, change: &Change) -> Result<(), FirewallError> {
        for step in &change.steps {
            if step.ports.iter().any(|port| port.number.get() == EXPOSED) {
                // It lets through no byte of any packet: the kernel answers no SYN.
                let nothing = [SockFilter::new(0x06, 0, 0, 0)];
                let filtered = SockRef::from(&*self.0.exposed).attach_filter(&nothing);
                filtered.map_err(|source| FirewallError::Run { program: "simulated".to_owned(), source })?;
                self.state().closed = Some(Timestamp::now());
            }
            self.state().shut = step.ports.iter().copied().collect();
        }
        Ok(())
    }

    fn lines_for(&self, port: Port, _desired: &Desired, _docker: &DockerRules) -> Vec<String> {
        vec![format!("drop {port}")]
    }
}
