//! A finding: an exposure that no allowlist entry covers.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use aws_lc_rs::digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::port::{Port, Protocol};

/// Name of a finding that stays the same over sweeps, restarts and vantage points:
/// 16 hexadecimal digits made from node, address and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct FindingId(String);

/// The text is no finding id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a finding id: 16 lower-case hexadecimal digits", crate::text::printable(.0, 40))]
pub struct FindingIdError(String);

/// Where a finding stands. Only the scanner's own probes make it `Resolved`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingStatus {
    /// Seen, nobody was told yet.
    Open,
    /// Sent to the agent, no final answer yet.
    Reported,
    /// The agent closed it and read its rules back; not proven yet.
    Enforced,
    /// Proven closed from outside.
    Resolved,
    /// The agent says what it would do and did nothing.
    Observed,
    /// The agent will not close it: a protected port.
    Refused,
    /// The agent tried and could not.
    Failed,
    /// Open again after it was resolved.
    Reopened,
    /// An allowlist entry covers it now.
    Accepted,
}

impl FindingStatus {
    /// Every one of them.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Reported,
        Self::Enforced,
        Self::Resolved,
        Self::Observed,
        Self::Refused,
        Self::Failed,
        Self::Reopened,
        Self::Accepted,
    ];

    /// Whether its port is open, or not shown to be anything else.
    pub fn is_open(self) -> bool {
        !self.is_over() && self != Self::Enforced
    }

    /// Whether nothing is left to do about it: proven closed, or allowed.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Resolved | Self::Accepted)
    }

    /// The word as it is shown and as it crosses the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Reported => "reported",
            Self::Enforced => "enforced",
            Self::Resolved => "resolved",
            Self::Observed => "observed",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Reopened => "reopened",
            Self::Accepted => "accepted",
        }
    }
}

impl fmt::Display for FindingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An exposure that no allowlist entry covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable name.
    pub id: FindingId,
    /// Node that is exposed.
    pub node: Name,
    /// Address it was reached at.
    pub address: IpAddr,
    /// Port number.
    pub port: NonZeroU16,
    /// Protocol of the port.
    pub protocol: Protocol,
    /// Where it stands.
    pub status: FindingStatus,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// What is behind the port, as far as it said so itself when it was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

impl Finding {
    /// The port with its protocol.
    pub fn port(&self) -> Port {
        Port { protocol: self.protocol, number: self.port }
    }
}

impl FindingId {
    /// The id of a target.
    pub fn of(node: &Name, address: IpAddr, port: Port) -> Self {
        let text = format!("deadlight.finding/v1\n{node}\n{address}\n{port}");
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        Self(hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FindingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for FindingId {
    type Err = FindingIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match good {
            true => Ok(Self(text.to_owned())),
            false => Err(FindingIdError(text.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for FindingId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_and_differ_by_target() {
        let id = |node: &str, address: &str, port: &str| {
            FindingId::of(&node.parse().unwrap(), address.parse().unwrap(), port.parse().unwrap())
        };
        let first = id("n1", "198.51.100.11", "8080/tcp");
        assert_eq!(first.as_str(), "31eaee584c38bfea", "a change here breaks every stored finding");
        for other in [
            id("n2", "198.51.100.11", "8080/tcp"),
            id("n1", "2001:db8:51::11", "8080/tcp"),
            id("n1", "198.51.100.11", "8080/udp"),
            id("n1", "198.51.100.11", "8081/tcp"),
        ] {
            assert_ne!(first, other);
        }
        assert_eq!(first.to_string().parse::<FindingId>().unwrap(), first);
        assert!("4C39".parse::<FindingId>().is_err());
    }
}
