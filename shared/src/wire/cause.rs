//! Why a port is open, as the agent tells it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The path by which a port is reachable. `docker-firewall.md` §4 lists how each is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// Published through the swarm's routing mesh.
    SwarmIngress,
    /// Published by one container: `mode=host` or `docker run -p`.
    PublishedContainer,
    /// A process listens on the node itself.
    HostProcess,
    /// docker-proxy listens in front of a container.
    DockerProxy,
    /// dockerd itself holds the published port and never answers.
    DockerdPlaceholder,
    /// One of the swarm's own ports: 2377, 7946, 4789.
    SwarmControl,
    /// The Docker API.
    DockerApi,
    /// A container reached by its own address.
    DirectRoute,
    /// An ingress rule whose service is gone.
    StaleIngress,
    /// Not found out.
    #[serde(other)]
    Unknown,
}

impl CauseKind {
    /// The word as it crosses the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SwarmIngress => "swarm_ingress",
            Self::PublishedContainer => "published_container",
            Self::HostProcess => "host_process",
            Self::DockerProxy => "docker_proxy",
            Self::DockerdPlaceholder => "dockerd_placeholder",
            Self::SwarmControl => "swarm_control",
            Self::DockerApi => "docker_api",
            Self::DirectRoute => "direct_route",
            Self::StaleIngress => "stale_ingress",
            Self::Unknown => "unknown",
        }
    }
}

/// A cause with the names that belong to it. Names come from Docker and from processes: escape
/// them before showing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The path.
    pub kind: CauseKind,
    /// Swarm service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Stack of the service, or compose project of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// The service's tasks, each with its node where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Image of the service or container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Container name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Program that holds the listening socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Its process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What the conclusion rests on, one short sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

impl Cause {
    /// A cause without names.
    pub fn new(kind: CauseKind) -> Self {
        Self {
            kind,
            service: None,
            stack: None,
            task: None,
            image: None,
            container: None,
            program: None,
            pid: None,
            unit: None,
            evidence: Vec::new(),
        }
    }
}

impl fmt::Display for Cause {
    /// One line, escaped: `swarm_ingress: service stats, image lab:1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid.map(|pid| pid.to_string());
        let names = [
            ("service", self.service.as_deref()),
            ("stack", self.stack.as_deref()),
            ("task", self.task.as_deref()),
            ("container", self.container.as_deref()),
            ("image", self.image.as_deref()),
            ("program", self.program.as_deref()),
            ("pid", pid.as_deref()),
            ("unit", self.unit.as_deref()),
        ];
        f.write_str(self.kind.as_str())?;
        let mut separator = ": ";
        for (word, name) in names {
            if let Some(name) = name {
                write!(f, "{separator}{word} {}", crate::text::printable(name, 128))?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_its_names_escaped() {
        let mut cause = Cause::new(CauseKind::SwarmIngress);
        assert_eq!(cause.to_string(), "swarm_ingress");
        cause.service = Some("stats\n".into());
        cause.image = Some("lab:1".into());
        assert_eq!(cause.to_string(), "swarm_ingress: service stats\\u{a}, image lab:1");
    }

    #[test]
    fn a_kind_of_a_newer_agent_reads_as_unknown() {
        let cause: Cause = serde_json::from_str(r#"{"kind":"moonbeam"}"#).unwrap();
        assert_eq!(cause.kind, CauseKind::Unknown);
    }
}
