//! Why a configuration is refused.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use deadlight_shared::allowlist::AllowlistError;
use deadlight_shared::config::ConfigError as FileError;
use deadlight_shared::text::printable;
use deadlight_shared::{Name, Port};
use jiff::SignedDuration;

use super::{LEAST_MOST, MOST_RATE, SHORTEST_KEEP};
use crate::alert::SinkKind;
use crate::store::LocationError;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or is not of the right shape.
    #[error(transparent)]
    File(#[from] FileError),
    /// The allowlist contradicts itself or the nodes.
    #[error(transparent)]
    Allowlist(#[from] AllowlistError),
    /// `[[node]]` is missing.
    #[error("no [[node]]: there is nothing to sweep")]
    NoNodes,
    /// A node without addresses.
    #[error("node {0} has no addresses")]
    NoAddresses(Name),
    /// Two nodes of one name.
    #[error("two nodes are named {0}")]
    SameName(Name),
    /// One address twice.
    #[error("address {address} stands twice, the second time at node {node}")]
    SameAddress {
        /// The address.
        address: IpAddr,
        /// The later node.
        node: Name,
    },
    /// An agent that cannot be reached by this text.
    #[error("agent of node {node}: `{}` is not like https://198.51.100.11:7443, nor \"pull\"", printable(.text, 80))]
    AgentUrl {
        /// The node.
        node: Name,
        /// What was written.
        text: String,
    },
    /// A control port that silence could not be measured by.
    #[error("control of node {node}: {port} is not a TCP port, and UDP ports need not answer")]
    ControlUdp {
        /// The node.
        node: Name,
        /// The port.
        port: Port,
    },
    /// An agent, but no certificate to show it.
    #[error("node {0} has an agent, but there is neither [pki] nor [tls]")]
    NoTrust(Name),
    /// Two places for our certificate.
    #[error("there are both [pki] and [tls]; where the CA is, [pki] is enough")]
    TwoTrusts,
    /// `every` makes no sense.
    #[error("[sweep] every = {0:#}: must be between 10s and 30d")]
    Every(SignedDuration),
    /// `quick` makes no sense.
    #[error("[sweep] quick = {0:#}: must be between 1s and 30d")]
    Quick(SignedDuration),
    /// `lease` makes no sense.
    #[error("[vantage] lease = {0:#}: must be between 5s and 1h")]
    Lease(SignedDuration),
    /// Nobody has so many vantage points.
    #[error("[prove] vantages = {0}: must be 1 or 2")]
    Vantages(u8),
    /// Nobody else can be asked.
    #[error("[prove] vantages = 2 needs a second scanner, which works with the same PostgreSQL server: [store] url")]
    Alone,
    /// A rate makes no sense.
    #[error("[sweep] {key} = {rate}: must be at most {MOST_RATE}")]
    Rate {
        /// Its key.
        key: &'static str,
        /// What was written.
        rate: NonZeroU32,
    },
    /// Somewhere to send to without a URL, or with two.
    #[error("{0} needs `url` or `url_file`, and not both")]
    Url(String),
    /// A kind of place without what it needs.
    #[error("[[alert]] {name}: kind = \"{}\" needs `{key}`", .kind.as_str())]
    SinkNeeds {
        /// The place.
        name: String,
        /// Its kind.
        kind: SinkKind,
        /// What is not there.
        key: &'static str,
    },
    /// A key that means nothing there.
    #[error("[[alert]] {name}: `{key}` is for kind = \"{}\" alone", .kind.as_str())]
    SinkKey {
        /// The place.
        name: String,
        /// The kind that takes it.
        kind: SinkKind,
        /// The key.
        key: &'static str,
    },
    /// A text that is no address of a mailbox.
    #[error("[[alert]] {name}: `{key}` = `{}` is not like ops@example.net", printable(.text, 80))]
    Mailbox {
        /// The place.
        name: String,
        /// Where it stands.
        key: &'static str,
        /// What was written.
        text: String,
    },
    /// A user without a password, or a password without a user.
    #[error("[[alert]] {0}: a user in the URL (smtps://user@…) and `password_file` need each other")]
    SinkLogin(String),
    /// A URL that no mail should be sent to.
    #[error(
        "url of {0} is not like smtps://user@mail.example.net:465 or, with STARTTLS, smtp://user@mail.example.net:587; \
         a password stands in `password_file` alone"
    )]
    MailScheme(String),
    /// A URL that nothing should be sent to.
    #[error("url of {0} is not like https://hooks.example.net/…; http is only for this host and for private addresses")]
    Scheme(String),
    /// Two alerts of one name.
    #[error("two [[alert]] are named {0}: give them a `name` each")]
    SameSink(String),
    /// The store is nowhere.
    #[error(transparent)]
    Store(#[from] LocationError),
    /// Next to nothing would be remembered.
    #[error("[store] keep = {0:#}: must be at least {SHORTEST_KEEP:#}")]
    Keep(SignedDuration),
    /// Less than a quiet year of a small swarm.
    #[error("[store] most = {0}: must be at least {LEAST_MOST} (MiB)")]
    Most(u32),
    /// The page would be open to everybody.
    #[error(
        "[web] listen = \"{0}\" is reached from other hosts: it needs `token_file`, or 127.0.0.1 behind a reverse proxy"
    )]
    WebToken(SocketAddr),
    /// Neither TCP nor UDP ports.
    #[error("[sweep] has neither tcp nor udp ports")]
    NoPorts,
}
