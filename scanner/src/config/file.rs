//! The configuration as it is written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;

use deadlight_shared::tls::TlsPaths;
use deadlight_shared::{AllowEntry, Name, Port, PortSet, Protocol};
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer};

use super::{PortsError, RATE, RATE_PER_NODE};
use crate::alert::SinkKind;

/// `scanner.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) vantage: Vantage,
    #[serde(default)]
    pub(super) prove: Prove,
    #[serde(default)]
    pub(super) sweep: Sweep,
    #[serde(default)]
    pub(super) node: Vec<Node>,
    #[serde(default)]
    pub(super) allow: Vec<AllowEntry>,
    #[serde(default)]
    pub(super) allowlist: Allowlist,
    pub(super) tls: Option<TlsPaths>,
    pub(super) pki: Option<Pki>,
    #[serde(default)]
    pub(super) pull: Pull,
    #[serde(default)]
    pub(super) store: Store,
    #[serde(default)]
    pub(super) alert: Vec<Alert>,
    pub(super) heartbeat: Option<Heartbeat>,
    pub(super) web: Option<Web>,
}

/// An allowlist alone: `scan --allowlist FILE`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AllowFile {
    pub(super) allow: Vec<AllowEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vantage {
    pub(super) id: Name,
    #[serde(default = "lease", deserialize_with = "duration")]
    pub(super) lease: SignedDuration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Prove {
    pub(super) vantages: u8,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Sweep {
    #[serde(deserialize_with = "duration")]
    pub(super) every: SignedDuration,
    #[serde(deserialize_with = "duration")]
    pub(super) quick: SignedDuration,
    #[serde(deserialize_with = "tcp_ports")]
    pub(super) tcp: PortSet,
    #[serde(deserialize_with = "udp_ports")]
    pub(super) udp: PortSet,
    pub(super) rate: NonZeroU32,
    pub(super) rate_per_node: NonZeroU32,
    pub(super) identify: bool,
    pub(super) payloads: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: Name,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) agent: Option<String>,
    #[serde(default)]
    pub(super) labels: Vec<String>,
    pub(super) control: Option<Port>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pki {
    pub(super) directory: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Allowlist {
    pub(super) signed: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Pull {
    pub(super) listen: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Alert {
    pub(super) name: Option<Name>,
    pub(super) kind: SinkKind,
    pub(super) url: Option<String>,
    pub(super) url_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) template_file: Option<PathBuf>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) from: Option<String>,
    pub(super) to: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Store {
    pub(super) url: String,
    #[serde(deserialize_with = "duration")]
    pub(super) keep: SignedDuration,
    pub(super) most: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Heartbeat {
    pub(super) url: Option<String>,
    pub(super) url_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Web {
    pub(super) listen: SocketAddr,
    pub(super) token_file: Option<PathBuf>,
}

impl Default for Prove {
    fn default() -> Self {
        Self { vantages: 1 }
    }
}

impl Default for Sweep {
    fn default() -> Self {
        let [tcp, udp] = ["1-65535/tcp", "53,123,161,4789,7946/udp"].map(|ports| ports.parse().unwrap_or_default());
        let every = SignedDuration::from_mins(15);
        let quick = SignedDuration::from_mins(1);
        Self { every, quick, tcp, udp, rate: RATE, rate_per_node: RATE_PER_NODE, identify: true, payloads: None }
    }
}

impl Default for Allowlist {
    fn default() -> Self {
        Self { signed: "permits.json".into() }
    }
}

impl Default for Pull {
    fn default() -> Self {
        Self { listen: (Ipv6Addr::UNSPECIFIED, 7444).into() }
    }
}

impl Default for Web {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, 7480).into(), token_file: None }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self { url: "sqlite:deadlight.db".to_owned(), keep: SignedDuration::from_hours(24 * 400), most: 1024 }
    }
}

fn lease() -> SignedDuration {
    SignedDuration::from_mins(1)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SignedDuration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = |_| serde::de::Error::custom(format_args!("`{text}` is no duration: write for example \"15m\""));
    text.parse().map_err(wrong)
}

fn tcp_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
    ports_of(Protocol::Tcp, &String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn udp_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
    ports_of(Protocol::Udp, &String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// A list of ports of one protocol, which need not be said; empty text is no port.
fn ports_of(protocol: Protocol, text: &str) -> Result<PortSet, PortsError> {
    if text.trim().is_empty() {
        return Ok(PortSet::default());
    }
    super::ports_of(protocol, text)
}
