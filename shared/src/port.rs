//! A port: its number and its transport protocol, always together.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::port_set::{PortSet, PortSetError};

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl Protocol {
    /// Both protocols, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The lower-case name, as `iptables -p` and `nft` take it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = PortSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(PortSetError::UnknownProtocol(other.to_owned())),
        }
    }
}

/// A port number with its protocol, written `8080/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Number from 1 to 65535.
    pub number: NonZeroU16,
}

impl Port {
    /// A TCP port.
    pub fn tcp(number: NonZeroU16) -> Self {
        Self { protocol: Protocol::Tcp, number }
    }

    /// A UDP port.
    pub fn udp(number: NonZeroU16) -> Self {
        Self { protocol: Protocol::Udp, number }
    }

    /// A port from a plain number; `None` for 0.
    pub fn new(protocol: Protocol, number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(|number| Self { protocol, number })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.number, self.protocol))
    }
}

impl FromStr for Port {
    type Err = PortSetError;

    /// Reads `8080/tcp`: one number, and the protocol must be said.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let set: PortSet = text.parse()?;
        let mut ports = set.iter();
        match (ports.next(), ports.next()) {
            (Some(port), None) => Ok(port),
            _ => Err(PortSetError::NotOnePort(text.to_owned())),
        }
    }
}

impl Serialize for Port {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_the_same_text() {
        for text in ["1/tcp", "8080/tcp", "53/udp", "65535/udp"] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_not_exactly_one_port() {
        for text in ["", "8080", "0/tcp", "65536/tcp", "80-81/tcp", "80,81/tcp", "80/sctp", "tcp/80", "-1/tcp", "80/"] {
            assert!(text.parse::<Port>().is_err(), "{text:?} was taken");
        }
    }
}
