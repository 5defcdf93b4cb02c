//! What a probe saw: facts, without judgement.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::port::Port;
use crate::text::printable;

/// Longest reason that is shown.
const SHOWN: usize = 300;

/// State of a port, in nmap's words, and `unknown` where it could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// It answered: a handshake was completed or a datagram came back.
    Open,
    /// It refused: RST, or ICMP port unreachable for UDP.
    Closed,
    /// No answer, or an ICMP message that forbids the way.
    Filtered,
    /// UDP silence: open and silent, or filtered.
    #[serde(rename = "open|filtered")]
    OpenFiltered,
    /// We could not ask: no route, no descriptor, no such address.
    Unknown,
}

impl PortState {
    /// The word as it is shown and as it crosses the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Filtered => "filtered",
            Self::OpenFiltered => "open|filtered",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What made a port state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// The TCP handshake was answered.
    SynAck,
    /// The TCP handshake was refused.
    Rst,
    /// A datagram came back.
    UdpReply,
    /// ICMP port unreachable.
    PortUnreachable,
    /// ICMP host, network or administratively unreachable.
    Unreachable,
    /// No answer to any attempt.
    Silence,
    /// Asked, but what came back, or did not, settles nothing; why.
    Inconclusive(String),
    /// The question was never sent; the reason, as the system gave it.
    NotAsked(String),
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SynAck => f.pad("syn-ack"),
            Self::Rst => f.pad("rst"),
            Self::UdpReply => f.pad("udp-reply"),
            Self::PortUnreachable => f.pad("icmp-port-unreachable"),
            Self::Unreachable => f.pad("icmp-unreachable"),
            Self::Silence => f.pad("silence"),
            Self::Inconclusive(reason) => f.pad(&printable(reason, SHOWN)),
            Self::NotAsked(reason) => f.pad(&format!("not asked: {}", printable(reason, SHOWN))),
        }
    }
}

impl Serialize for Evidence {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One target's state as one vantage point saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Node the address belongs to.
    pub node: Name,
    /// Address that was probed.
    pub address: IpAddr,
    /// Port that was probed.
    pub port: Port,
    /// The verdict.
    pub state: PortState,
    /// What the verdict rests on.
    pub evidence: Evidence,
    /// Packets or connection attempts made.
    pub attempts: u32,
    /// What is behind the port, as far as it says so itself; not escaped.
    pub service: Option<String>,
}
