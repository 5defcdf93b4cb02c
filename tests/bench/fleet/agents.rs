//! All agents in one process: the agent's own node, keyring, TLS and API, on a simulated machine.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use deadlight_agent::{
    api::{Server, Slots, router},
    config::Config,
    identity::Keyring,
    node::Node,
};
use deadlight_shared::{tls::TlsPaths, wire::Mode};
use deadlight_tests::{deployment::AGENT_PORT, netns::Netns};
use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};

use super::machine::{OUTSIDE, Rig};

/// They answer until dropped.
pub(super) struct Agents {
    _runtime: Runtime,
    rigs: Vec<Rig>,
}

impl Agents {
    /// Node `n0` and so on, one at each of `addresses`, under the certificates in `directory`.
    pub(super) fn start(place: &Netns, addresses: &[IpAddr], directory: &Path) -> Result<Self> {
        // Its threads are of the namespace of the one that makes it.
        place.enter(|| {
            let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let rigs = runtime.block_on(async {
                let nodes = addresses.iter().enumerate();
                nodes.map(|(number, address)| agent(number, *address, directory)).collect::<Result<_>>()
            })?;
            Ok(Self { _runtime: runtime, rigs })
        })
    }

    /// When each node that has closed its port did so.
    pub(super) fn closed(&self) -> Vec<Timestamp> {
        self.rigs.iter().filter_map(Rig::closed).collect()
    }
}

fn agent(number: usize, address: IpAddr, directory: &Path) -> Result<Rig> {
    let file = |name: String| directory.join(name);
    let paths = TlsPaths {
        ca: file("ca.crt".to_owned()),
        certificate: file(format!("agent-n{number}.crt")),
        key: file(format!("agent-n{number}.key")),
    };
    let listen = SocketAddr::new(address, AGENT_PORT);
    let config = Config {
        mode: Mode::Enforce,
        listen,
        state_dir: file(format!("state-{number}")),
        outside: vec![OUTSIDE.to_owned()],
        ..Config::default()
    };
    let keyring = Arc::new(Keyring::load(config.state_dir.clone(), Some(&paths))?);
    let rig = Rig::start(address)?;
    let node = Node::on(Box::new(rig.clone()), format!("n{number}").parse()?, config, Box::new(rig.clone()));
    let slots = Slots::new(Vec::new());
    let routes = router(Arc::new(node), Arc::clone(&keyring), slots.clone());
    tokio::spawn(Server::bind(listen, keyring.tls(), routes, slots)?.run(std::future::pending()));
    Ok(rig)
}
