//! The local policy: what no order can do.

use std::fmt;

use deadlight_shared::{Port, PortSet};

use crate::ledger::Permitted;

/// Limits that stand whatever the scanner says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Ports that are never closed, each with its reason.
    pub protected: Vec<Protection>,
    /// New ports that orders may close within an hour.
    pub max_new_per_hour: usize,
    /// What orders may open.
    pub permitted: Permitted,
}

/// Ports that are protected for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protection {
    /// The ports.
    pub ports: PortSet,
    /// Why, such as "sshd listens on it".
    pub reason: String,
}

/// Why one port is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason<'a> {
    port: Port,
    reason: &'a str,
}

impl Policy {
    /// Why `port` is protected, if it is.
    pub fn protection(&self, port: Port) -> Option<Reason<'_>> {
        let protection = self.protected.iter().find(|protection| protection.ports.contains(port))?;
        Some(Reason { port, reason: &protection.reason })
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is protected: {}", self.port, self.reason)
    }
}
