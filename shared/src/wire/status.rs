//! The agent's state of health.

use serde::{Deserialize, Serialize};

use super::report::Mode;
use crate::name::Name;
use crate::port::Port;

/// The answer to `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Always [`Status::SCHEMA`].
    pub schema: String,
    /// The node.
    pub node: Name,
    /// The agent's mode.
    pub mode: Mode,
    /// Version of the agent.
    pub version: String,
    /// Ports that shall be closed.
    pub closed: Vec<ClosedPort>,
    /// Whether the kernel holds exactly the rules that it should.
    pub in_force: bool,
    /// Rules that were lost and put back since the last report, with their likely author.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<String>,
    /// The networks from which alone the agent's own port is reached; empty where it is open to everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub door: Vec<String>,
    /// Who called since the agent started; only a running agent knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callers: Option<Callers>,
    /// What is wrong or missing, one sentence each; empty when all is well.
    pub problems: Vec<String>,
}

/// A closed port and what came against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedPort {
    /// The port.
    pub port: Port,
    /// Packets that the guard dropped for it so far; 0 also where the guard is of iptables, which does not count.
    pub dropped: u64,
}

/// Connections to the agent's port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callers {
    /// Ended without a certificate of this deployment; nothing they sent was read as HTTP.
    pub strangers: u64,
    /// Showed such a certificate, and only then were heard.
    pub proven: u64,
    /// Had to make room for newer ones.
    pub evicted: u64,
    /// Ended by a panic of the agent's code; it went on.
    pub panics: u64,
}

impl Status {
    /// Schema name of this version.
    pub const SCHEMA: &str = "deadlight.status/v1";
}
