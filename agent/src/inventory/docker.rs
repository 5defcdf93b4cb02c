//! What Docker says about networks, services and containers. Never waited for long, never needed
//! to close a port.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bollard::models::{ContainerSummary, EndpointPortConfigPublishModeEnum, Network, PortSummaryTypeEnum};
use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions, ListServicesOptions};
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use deadlight_shared::text::printable;
use deadlight_shared::{Port, Protocol};
use ipnet::IpNet;

use super::swarm::{Membership, Swarm, Task};
use crate::gate::{Gate, LIMIT};

/// What rules are made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// Subnets of the node's own bridges.
    pub subnets: Vec<IpNet>,
    /// Addresses of the swarm's nodes, as far as this one knows them; none outside of a swarm.
    pub peers: BTreeSet<IpAddr>,
}

/// The engine itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Its version, where it says one.
    pub version: Option<String>,
    /// Its part in a swarm.
    pub membership: Membership,
}

/// Docker's objects, as far as they explain a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerFacts {
    /// What rules are made from.
    pub networks: Networks,
    /// Services of the swarm; none where this node is no manager.
    pub services: Option<Vec<Service>>,
    /// Running containers of this node.
    pub containers: Vec<Container>,
}

/// A swarm service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its stack.
    pub stack: Option<String>,
    /// Its image, without the digest.
    pub image: Option<String>,
    /// Ports it publishes through the routing mesh.
    pub ingress: Vec<Port>,
    /// Its running tasks.
    pub tasks: Vec<Task>,
}

/// A container of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: Option<String>,
    /// The swarm service it belongs to.
    pub service: Option<String>,
    /// The task of that service, such as `stats.1`.
    pub task: Option<String>,
    /// Its stack, or its compose project.
    pub stack: Option<String>,
    /// Its addresses in all networks.
    pub addresses: Vec<IpAddr>,
    /// Ports of the node that lead to it.
    pub published: Vec<Port>,
}

/// Why Docker says nothing.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// No socket, or nobody behind it.
    #[error("failed to reach Docker at {}: {reason}", socket.display())]
    Reach {
        /// The socket.
        socket: PathBuf,
        /// What bollard said.
        reason: String,
    },
    /// It takes the connection and does not answer.
    #[error("Docker at {} gave no answer within {} s", socket.display(), LIMIT.as_secs())]
    Hung {
        /// The socket.
        socket: PathBuf,
    },
}

/// Asks the engine behind `socket` for what rules are made from; at most two seconds.
pub async fn networks(socket: &Path) -> Result<Networks, DockerError> {
    ask(socket, async |docker| ask_networks(&docker).await).await
}

/// Asks the engine behind `socket` who it is; at most two seconds.
pub async fn engine(socket: &Path) -> Result<Engine, DockerError> {
    ask(socket, async |docker| {
        let info = docker.info().await?;
        let version = info.server_version.map(|version| printable(&version, 60));
        let swarm = info.swarm.unwrap_or_default();
        Ok(Engine { version, membership: Membership::of(&swarm) })
    })
    .await
}

/// Asks the engine behind `socket` for everything; at most two seconds.
pub async fn gather(socket: &Path) -> Result<DockerFacts, DockerError> {
    ask(socket, async |docker| ask_all(&docker).await).await
}

/// A client of the engine behind `socket`; nothing is asked yet.
pub(super) fn client(socket: &Path) -> Result<Docker, DockerError> {
    let gate = Gate::new(socket.to_owned());
    let transport = move |request: BollardRequest| {
        let answer = gate.clone().put(request);
        async { Ok(answer.await?) }
    };
    // The gate's own limit says more than bollard's, so it shall be the first.
    let limit = 2 * LIMIT.as_secs();
    Docker::connect_with_custom_transport(transport, Some("http://docker"), limit, API_DEFAULT_VERSION)
        .map_err(|error| reach(socket, &error))
}

fn reach(socket: &Path, error: &bollard::errors::Error) -> DockerError {
    DockerError::Reach { socket: socket.to_owned(), reason: printable(&error.to_string(), 300) }
}

async fn ask<T>(
    socket: &Path,
    question: impl AsyncFnOnce(Docker) -> Result<T, bollard::errors::Error>,
) -> Result<T, DockerError> {
    match tokio::time::timeout(LIMIT, question(client(socket)?)).await {
        Ok(answer) => answer.map_err(|error| reach(socket, &error)),
        Err(_) => Err(DockerError::Hung { socket: socket.to_owned() }),
    }
}

async fn ask_networks(docker: &Docker) -> Result<Networks, bollard::errors::Error> {
    let networks = docker.list_networks(None::<ListNetworksOptions>).await?;
    Ok(networks_of(&networks, &Swarm::ask(docker).await?))
}

async fn ask_all(docker: &Docker) -> Result<DockerFacts, bollard::errors::Error> {
    let networks = docker.list_networks(None::<ListNetworksOptions>).await?;
    let swarm = Swarm::ask(docker).await?;
    let containers = docker.list_containers(None::<ListContainersOptions>).await?;
    // Workers and engines outside a swarm refuse this one; that is an answer too.
    let services = docker.list_services(None::<ListServicesOptions>).await.ok();
    let tasks = if services.is_some() { swarm.ask_tasks(docker).await } else { HashMap::new() };
    Ok(DockerFacts {
        networks: networks_of(&networks, &swarm),
        services: services.map(|services| services.into_iter().map(|listed| service(listed, &tasks)).collect()),
        containers: containers.into_iter().map(container).collect(),
    })
}

fn networks_of(networks: &[Network], swarm: &Swarm) -> Networks {
    // In one order, whatever Docker's, so that rules made from them do not change by themselves.
    let subnets: BTreeSet<IpNet> = networks.iter().flat_map(bridge_subnets).collect();
    Networks { subnets: subnets.into_iter().collect(), peers: swarm.peers(networks) }
}

fn bridge_subnets(network: &Network) -> Vec<IpNet> {
    if network.driver.as_deref() != Some("bridge") {
        return Vec::new();
    }
    let configs = network.ipam.iter().filter_map(|ipam| ipam.config.as_ref()).flatten();
    configs.filter_map(|config| config.subnet.as_ref()?.parse().ok()).collect()
}

fn service(service: bollard::models::Service, tasks: &HashMap<String, Vec<Task>>) -> Service {
    let spec = service.spec.unwrap_or_default();
    let image = spec.task_template.and_then(|task| task.container_spec).and_then(|container| container.image);
    let ports = service.endpoint.and_then(|endpoint| endpoint.ports).unwrap_or_default();
    let ingress = ports
        .into_iter()
        .filter(|port| port.publish_mode == Some(EndpointPortConfigPublishModeEnum::INGRESS))
        .filter_map(|port| {
            let protocol = port.protocol?.as_ref().parse::<Protocol>().ok()?;
            Port::new(protocol, u16::try_from(port.published_port?).ok()?)
        })
        .collect();
    Service {
        name: spec.name.unwrap_or_default(),
        tasks: service.id.and_then(|id| tasks.get(&id)).cloned().unwrap_or_default(),
        stack: spec.labels.unwrap_or_default().remove("com.docker.stack.namespace"),
        image: image.map(without_digest),
        ingress,
    }
}

fn container(container: ContainerSummary) -> Container {
    let mut labels: HashMap<String, String> = container.labels.unwrap_or_default();
    let name = container.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let addresses = networks
        .into_values()
        .flat_map(|endpoint| [endpoint.ip_address, endpoint.global_ipv6_address])
        .filter_map(|address| address?.parse().ok())
        .collect();
    let published = container
        .ports
        .unwrap_or_default()
        .into_iter()
        .filter_map(|port| {
            let protocol = match port.typ? {
                PortSummaryTypeEnum::TCP => Protocol::Tcp,
                PortSummaryTypeEnum::UDP => Protocol::Udp,
                _ => return None,
            };
            Port::new(protocol, port.public_port?)
        })
        .collect();
    Container {
        id: container.id.unwrap_or_default(),
        name: name.trim_start_matches('/').to_owned(),
        image: container.image.map(without_digest),
        service: labels.remove("com.docker.swarm.service.name"),
        // Docker appends the task's id, which says nothing to anybody.
        task: labels
            .remove("com.docker.swarm.task.name")
            .map(|name| name.rsplit_once('.').map_or(name.clone(), |(name, _)| name.to_owned())),
        stack: labels.remove("com.docker.stack.namespace").or_else(|| labels.remove("com.docker.compose.project")),
        addresses,
        published,
    }
}

fn without_digest(image: String) -> String {
    image.split_once('@').map_or(image.clone(), |(name, _)| name.to_owned())
}
