//! The nodes, and how their agents are reached.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use deadlight_shared::allowlist::Subject;
use deadlight_shared::{Name, Port, PortSet, Protocol};
use reqwest::Url;

use super::{ConfigError, file};

/// One node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// Its addresses; at least one.
    pub addresses: Vec<IpAddr>,
    /// Its agent.
    pub agent: Option<Way>,
    /// Its labels.
    pub labels: Vec<String>,
    /// The TCP port that must answer.
    pub control: Option<Port>,
}

/// How an agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It listens there.
    Push(Url),
    /// It calls us.
    Pull,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Push(url) => url.fmt(f),
            Self::Pull => f.write_str("by its call"),
        }
    }
}

impl Node {
    /// The node as the allowlist sees it.
    pub fn subject(&self) -> Subject<'_> {
        Subject { node: &self.name, labels: &self.labels }
    }

    /// The TCP port that must answer: the configured one, or the agent's.
    pub fn control_port(&self) -> Option<Port> {
        self.control.or_else(|| self.agent_port())
    }

    /// What may be open although no entry says so: the agent and the control port.
    pub fn own_ports(&self) -> PortSet {
        self.control.into_iter().chain(self.agent_port()).collect()
    }

    fn agent_port(&self) -> Option<Port> {
        let Some(Way::Push(url)) = &self.agent else { return None };
        Port::new(Protocol::Tcp, url.port_or_known_default()?)
    }
}

pub(super) fn checked_node(node: file::Node) -> Result<Node, ConfigError> {
    let file::Node { name, addresses, agent, labels, control } = node;
    if let Some(port) = control.filter(|port| port.protocol != Protocol::Tcp) {
        return Err(ConfigError::ControlUdp { node: name, port });
    }
    let agent = match agent {
        None => None,
        Some(text) if text == "pull" => Some(Way::Pull),
        Some(text) => match agent_url(&text) {
            Some(url) => Some(Way::Push(url)),
            None => return Err(ConfigError::AgentUrl { node: name, text }),
        },
    };
    match addresses.is_empty() {
        true => Err(ConfigError::NoAddresses(name)),
        false => Ok(Node { name, addresses, agent, labels, control }),
    }
}

/// An https URL with a port and nothing behind it.
pub(super) fn agent_url(text: &str) -> Option<Url> {
    let authority = text.strip_prefix("https://")?;
    let (_, port) = authority.strip_suffix('/').unwrap_or(authority).rsplit_once(':')?;
    let url: Url = text.parse().ok()?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    (plain && port.parse() == Ok(url.port_or_known_default()?) && url.path() == "/").then_some(url)
}

pub(super) fn check_nodes(nodes: &[Node]) -> Result<(), ConfigError> {
    if nodes.is_empty() {
        return Err(ConfigError::NoNodes);
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for node in nodes {
        if !names.insert(&node.name) {
            return Err(ConfigError::SameName(node.name.clone()));
        }
        if let Some(address) = node.addresses.iter().find(|address| !addresses.insert(**address)) {
            return Err(ConfigError::SameAddress { address: *address, node: node.name.clone() });
        }
    }
    Ok(())
}
