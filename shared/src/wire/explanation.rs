//! Why one port is open, and what Deadlight does about it.

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use crate::name::Name;
use crate::port::Port;

/// The answer to `GET /v1/explain/{proto}/{port}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Always [`Explanation::SCHEMA`].
    pub schema: String,
    /// The node.
    pub node: Name,
    /// The port.
    pub port: Port,
    /// Why it is open; [`super::CauseKind::Unknown`] when nothing holds it.
    pub cause: Cause,
    /// The way of a packet from outside: foreign rules that name the port, and the jumps that lead to them,
    /// in the order in which it meets them.
    pub path: Vec<String>,
    /// By whose allowlist the port may be open; empty when no entry covers it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_by: Vec<String>,
    /// Whether the guard closes it now.
    pub closed: bool,
    /// Why Deadlight would refuse to close it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Our own lines for this port: those that stand, or that an order would write.
    pub rules: Vec<String>,
}

impl Explanation {
    /// Schema name of this version.
    pub const SCHEMA: &str = "deadlight.explanation/v1";
}
