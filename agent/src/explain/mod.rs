//! Why a port is open: from facts to a cause. Pure.
//!
//! In order of weight (`docker-firewall.md` §4): the conntrack entry of a probe from outside, whose
//! reply address names who answered; then Docker's DNAT rules; then the socket that listens.

mod path;

use std::net::IpAddr;

use deadlight_shared::wire::{Cause, CauseKind};
use deadlight_shared::{Port, Protocol};

pub use path::path;

use crate::firewall::DockerRules;
use crate::firewall::iptables::Dnat;
use crate::inventory::{Container, DockerFacts, Facts, Flow, Listener, Service};

/// The question: a port, and the address at which it answered when that is known.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The published port.
    pub port: Port,
    /// The node's address that was probed.
    pub address: Option<IpAddr>,
    /// Who probed it.
    pub from: Option<IpAddr>,
}

/// The best answer that the facts allow.
pub fn cause(question: Question, facts: &Facts, rules: &DockerRules) -> Cause {
    let view = View { question, facts, rules };
    // Without an address a flow may be of either family: what Docker says of itself is steadier.
    let published = match question.address {
        Some(_) => view.by_flow().or_else(|| view.by_dnat()),
        None => view.by_dnat().or_else(|| view.by_flow()),
    };
    let mut cause = published
        .or_else(|| view.by_listener())
        .or_else(|| view.by_kernel())
        .unwrap_or_else(|| Cause::new(CauseKind::Unknown));
    let missing = [facts.flows.as_ref().err(), facts.listeners.as_ref().err(), facts.docker.as_ref().err()];
    cause.evidence.extend(missing.into_iter().flatten().map(|reason| format!("not seen: {reason}")));
    cause
}

struct View<'a> {
    question: Question,
    facts: &'a Facts,
    rules: &'a DockerRules,
}

impl View<'_> {
    fn by_flow(&self) -> Option<Cause> {
        let port = self.question.port;
        let matches = |flow: &&Flow| {
            flow.protocol == port.protocol
                && flow.destination.port() == port.number.get()
                && self.question.address.is_none_or(|address| flow.destination.ip() == address)
                && !self.is_ours(flow.source.ip())
        };
        let flows = || self.facts.flows.iter().flatten().filter(matches);
        let probe = |flow: &&Flow| Some(flow.source.ip()) == self.question.from;
        let (flow, who) = match flows().rfind(probe) {
            Some(flow) => (flow, "the scanner's probe"),
            None => (flows().next_back()?, "a client"),
        };
        let evidence = format!("{who} from {} was answered by {}", flow.source, flow.answers);
        let dnat = self.dnat().find(|dnat| dnat.to == flow.answers.ip());
        let mut cause = match dnat {
            Some(dnat) => self.published(dnat),
            None if self.is_ours(flow.answers.ip()) => self.by_listener()?,
            None => {
                let container = self.container(|container| container.addresses.contains(&flow.answers.ip()));
                let direct = flow.answers.ip() == flow.destination.ip();
                let kind = if direct { CauseKind::DirectRoute } else { CauseKind::PublishedContainer };
                with_container(Cause::new(kind), container?)
            }
        };
        cause.evidence.insert(0, evidence);
        Some(cause)
    }

    fn by_dnat(&self) -> Option<Cause> {
        let mut rules = self.dnat().filter(|dnat| {
            let address = self.question.address;
            address
                .is_none_or(|address| dnat.to.is_ipv4() == address.is_ipv4() && dnat.on.is_none_or(|on| on == address))
        });
        rules.next().map(|dnat| self.published(dnat))
    }

    fn published(&self, dnat: &Dnat) -> Cause {
        let rule = format!("nat {} sends {} to {} port {}", dnat.chain, dnat.port, dnat.to, dnat.to_port);
        let mut cause = match dnat.chain {
            "DOCKER-INGRESS" => self.ingress(CauseKind::SwarmIngress),
            _ => {
                let container = self.container(|container| container.addresses.contains(&dnat.to));
                let cause = Cause::new(CauseKind::PublishedContainer);
                container.map_or(cause.clone(), |container| with_container(cause, container))
            }
        };
        cause.evidence.push(rule);
        cause
    }

    /// A port of the routing mesh; on a manager the service is known, or known to be gone.
    fn ingress(&self, kind: CauseKind) -> Cause {
        let Some(docker) = self.docker() else { return Cause::new(kind) };
        let Some(services) = &docker.services else {
            let mut cause = Cause::new(kind);
            cause.evidence.push("this node is no manager and cannot list services".to_owned());
            return cause;
        };
        match services.iter().find(|service| service.ingress.contains(&self.question.port)) {
            Some(service) => {
                let mut cause = Cause {
                    service: Some(service.name.clone()),
                    stack: service.stack.clone(),
                    task: tasks(service),
                    image: service.image.clone(),
                    ..Cause::new(kind)
                };
                if !service.tasks.is_empty() && !service.tasks.iter().any(|task| task.is_here) {
                    let reason =
                        "no task of it runs here: the mesh leads on to another node, and so does every other node's";
                    cause.evidence.push(reason.to_owned());
                }
                cause
            }
            None => {
                let mut cause = Cause::new(CauseKind::StaleIngress);
                cause.evidence.push("no service of the swarm publishes it".to_owned());
                cause
            }
        }
    }

    fn by_listener(&self) -> Option<Cause> {
        let takes = |listener: &&Listener| listener.port == self.question.port && listener.takes(self.question.address);
        let listener = self.facts.listeners.as_ref().ok()?.iter().find(takes)?;
        let mut cause = match &listener.process {
            None => Cause::new(self.control().unwrap_or(CauseKind::HostProcess)),
            Some(process) => {
                let mut cause = match process.program.as_str() {
                    "dockerd" => self.held_by_dockerd(),
                    "docker-proxy" => self.proxied(&process.arguments),
                    _ => {
                        let id = process.container.as_ref();
                        let container = self.container(|container| id == Some(&container.id));
                        let cause = Cause::new(CauseKind::HostProcess);
                        container.map_or(cause.clone(), |container| with_container(cause, container))
                    }
                };
                cause.program = Some(process.program.clone());
                cause.pid = Some(process.pid);
                cause.unit = process.unit.clone();
                cause
            }
        };
        cause.evidence.push(format!("a socket of this node listens on {} port {}", listener.address, listener.port));
        Some(cause)
    }

    fn held_by_dockerd(&self) -> Cause {
        match self.question.port.number.get() {
            2375 | 2376 => Cause::new(CauseKind::DockerApi),
            _ => match self.control() {
                Some(kind) => Cause::new(kind),
                None => self.ingress(CauseKind::DockerdPlaceholder),
            },
        }
    }

    fn proxied(&self, arguments: &[String]) -> Cause {
        let address = arguments.iter().skip_while(|word| *word != "-container-ip").nth(1);
        let address: Option<IpAddr> = address.and_then(|address| address.parse().ok());
        let container = self.container(|container| address.is_some_and(|a| container.addresses.contains(&a)));
        let cause = Cause::new(CauseKind::DockerProxy);
        container.map_or(cause.clone(), |container| with_container(cause, container))
    }

    /// VXLAN has no process and no listening socket in `/proc/net/udp` of some kernels.
    fn by_kernel(&self) -> Option<Cause> {
        self.control().filter(|_| self.question.port.number.get() == 4789).map(Cause::new)
    }

    fn control(&self) -> Option<CauseKind> {
        let port = self.question.port;
        let control = match port.protocol {
            Protocol::Tcp => [2377, 7946].contains(&port.number.get()),
            Protocol::Udp => [7946, 4789].contains(&port.number.get()),
        };
        control.then_some(CauseKind::SwarmControl)
    }

    fn dnat(&self) -> impl Iterator<Item = &Dnat> {
        self.rules.dnat.iter().filter(|dnat| dnat.port == self.question.port)
    }

    fn docker(&self) -> Option<&DockerFacts> {
        self.facts.docker.as_ref().ok()
    }

    fn container(&self, is_it: impl Fn(&Container) -> bool) -> Option<&Container> {
        self.docker()?.containers.iter().find(|container| is_it(container))
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        self.facts.addresses.contains(&address)
    }
}

/// Such as `stats.1 on n2`; the first few.
fn tasks(service: &Service) -> Option<String> {
    const SHOWN: usize = 3;
    let mut names: Vec<String> = service
        .tasks
        .iter()
        .take(SHOWN)
        .map(|task| format!("{}.{} on {}", service.name, task.slot, task.node))
        .collect();
    if service.tasks.len() > SHOWN {
        names.push(format!("{} more", service.tasks.len() - SHOWN));
    }
    (!names.is_empty()).then(|| names.join(" and "))
}

fn with_container(cause: Cause, container: &Container) -> Cause {
    Cause {
        service: container.service.clone(),
        task: container.task.clone(),
        stack: container.stack.clone(),
        image: container.image.clone(),
        container: Some(container.name.clone()),
        ..cause
    }
}

#[cfg(test)]
mod tests;
