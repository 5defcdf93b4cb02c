//! What the node knows about its ports: flows, sockets, Docker's objects, interfaces. Facts only.

pub mod changes;
pub mod conntrack;
pub mod docker;
pub mod events;
pub mod interfaces;
pub mod listeners;
mod netlink;
mod swarm;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use deadlight_shared::{Port, PortSet};

use crate::config::Config;

pub use conntrack::Flow;
pub use docker::{Container, DockerFacts, Engine, Networks, Service};
pub use listeners::{Listener, Process};
pub use netlink::NetlinkError;
pub use swarm::{Membership, Task};

/// Whether this process has a capability, by its number in the kernel's `capability.h`.
pub fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.is_some_and(|effective| effective & (1 << number) != 0)
}

/// The kernel's `PROC_PID_INIT_INO`: the process namespace in which everybody is seen.
const INITIAL_NAMESPACE: &str = "pid:[4026531836]";

/// Whether the process namespace behind this link of `/proc` is the initial one.
fn is_initial(namespace: &Path) -> bool {
    fs::read_link(namespace).is_ok_and(|namespace| namespace == Path::new(INITIAL_NAMESPACE))
}

/// Everything an explanation may rest on. A part that could not be read says why.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Tracked flows to the ports in question.
    pub flows: Result<Vec<Flow>, String>,
    /// Listening sockets with their processes.
    pub listeners: Result<Vec<Listener>, String>,
    /// Docker's objects.
    pub docker: Result<DockerFacts, String>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
}

impl Facts {
    /// Reads everything that may explain `ports`; Docker gets two seconds, its answer is never
    /// waited for longer.
    pub async fn gather(config: &Config, ports: PortSet) -> Self {
        let docker = docker::gather(&config.docker_socket).await.map_err(|error| error.to_string());
        let view = config.listeners.clone();
        let local = tokio::task::spawn_blocking(move || {
            let asked = |flow: &Flow| {
                Port::new(flow.protocol, flow.destination.port()).is_some_and(|port| ports.contains(port))
            };
            let flows = conntrack::dump(asked).map_err(|error| error.to_string());
            let listeners = listeners::read(&view).map_err(|error| error.to_string());
            (flows, listeners, interfaces::addresses())
        });
        let (flows, listeners, addresses) = local.await.unwrap_or_else(|error| {
            let reason = || Err(error.to_string());
            (reason(), Err(error.to_string()), Vec::new())
        });
        let addresses = addresses.into_iter().map(|(_, address)| address).collect();
        Self { flows, listeners, docker, addresses }
    }
}
