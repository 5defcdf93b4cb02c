//! What Docker knows of the swarm that this node is part of: the other nodes, and where tasks run.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{LocalNodeState, Network, Node, SwarmInfo};
use bollard::query_parameters::{ListNodesOptions, ListTasksOptions};

/// A task of a swarm service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its number within the service; for a global service the node's id.
    pub slot: String,
    /// Host name of the node that runs it.
    pub node: String,
    /// Whether that is this node.
    pub is_here: bool,
}

/// The part that a node takes in a swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// None.
    None,
    /// It runs tasks.
    Worker,
    /// It knows all nodes and services.
    Manager,
}

impl Membership {
    pub(super) fn of(info: &SwarmInfo) -> Self {
        match (info.local_node_state, info.control_available) {
            (Some(LocalNodeState::ACTIVE), Some(true)) => Self::Manager,
            (Some(LocalNodeState::ACTIVE), _) => Self::Worker,
            _ => Self::None,
        }
    }
}

/// Empty outside of a swarm.
#[derive(Default)]
pub(super) struct Swarm {
    info: SwarmInfo,
    /// Only a manager can list them, and only while the swarm has a leader.
    nodes: Vec<Node>,
}

impl Swarm {
    pub(super) async fn ask(docker: &Docker) -> Result<Self, Error> {
        let info = docker.info().await?.swarm.unwrap_or_default();
        if info.local_node_state != Some(LocalNodeState::ACTIVE) {
            return Ok(Self::default());
        }
        let nodes = match info.control_available {
            Some(true) => docker.list_nodes(None::<ListNodesOptions>).await.unwrap_or_default(),
            _ => Vec::new(),
        };
        Ok(Self { info, nodes })
    }

    /// Addresses of the nodes. A worker knows the managers, and who takes part in its networks; a manager knows
    /// everybody.
    pub(super) fn peers(&self, networks: &[Network]) -> BTreeSet<IpAddr> {
        if self.info.local_node_state.is_none() {
            return BTreeSet::new();
        }
        let managers = self.info.remote_managers.iter().flatten().filter_map(|manager| manager.addr.as_ref());
        let in_networks = networks.iter().flat_map(|network| network.peers.iter().flatten());
        let listed = self.nodes.iter().flat_map(|node| {
            let as_node = node.status.as_ref().and_then(|status| status.addr.as_ref());
            [as_node, node.manager_status.as_ref().and_then(|status| status.addr.as_ref())]
        });
        let texts = managers.chain(in_networks.filter_map(|peer| peer.ip.as_ref())).chain(listed.flatten());
        let addresses = texts.filter_map(|text| address(text));
        addresses.filter(|address| !address.is_unspecified() && !address.is_loopback()).collect()
    }

    /// The running tasks of each service, by its id; none where the swarm does not tell.
    pub(super) async fn ask_tasks(&self, docker: &Docker) -> HashMap<String, Vec<Task>> {
        let filters = HashMap::from([("desired-state".to_owned(), vec!["running".to_owned()])]);
        let listed = docker.list_tasks(Some(ListTasksOptions { filters: Some(filters) })).await.unwrap_or_default();
        let mut tasks: HashMap<String, Vec<Task>> = HashMap::new();
        for task in listed {
            let (Some(service), Some(node)) = (task.service_id, task.node_id) else { continue };
            tasks.entry(service).or_default().push(Task {
                slot: task.slot.map_or_else(|| node.clone(), |slot| slot.to_string()),
                is_here: Some(&node) == self.info.node_id.as_ref(),
                node: self.host_name(&node).unwrap_or(node),
            });
        }
        tasks
    }

    fn host_name(&self, id: &str) -> Option<String> {
        let node = self.nodes.iter().find(|node| node.id.as_deref() == Some(id))?;
        node.description.as_ref()?.hostname.clone()
    }
}

/// Docker writes some of them with a port.
fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{ManagerStatus, NodeStatus, PeerInfo, PeerNode};

    #[test]
    fn peers_come_from_wherever_docker_tells_them() {
        let text = |text: &str| Some(text.to_owned());
        let swarm = Swarm {
            info: SwarmInfo {
                local_node_state: Some(LocalNodeState::ACTIVE),
                remote_managers: Some(vec![PeerNode { addr: text("198.51.100.11:2377"), ..PeerNode::default() }]),
                ..SwarmInfo::default()
            },
            nodes: vec![Node {
                status: Some(NodeStatus { addr: text("0.0.0.0"), ..NodeStatus::default() }),
                manager_status: Some(ManagerStatus {
                    addr: text("[2001:db8:51::12]:2377"),
                    ..ManagerStatus::default()
                }),
                ..Node::default()
            }],
        };
        let peers =
            ["198.51.100.13", "nonsense", "127.0.0.1"].map(|ip| PeerInfo { ip: text(ip), ..PeerInfo::default() });
        let ingress = [Network { peers: Some(peers.into()), ..Network::default() }];
        let told: Vec<String> = swarm.peers(&ingress).iter().map(IpAddr::to_string).collect();
        assert_eq!(told, ["198.51.100.11", "198.51.100.13", "2001:db8:51::12"]);
        assert!(Swarm::default().peers(&ingress).is_empty(), "no swarm");
    }
}
