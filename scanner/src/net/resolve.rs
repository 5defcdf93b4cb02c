//! From names to addresses, and whether there is a way to them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

/// How long the system's resolver may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a name gives no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver said no.
    #[error("failed to resolve `{name}`")]
    Lookup {
        /// The name.
        name: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// The resolver said nothing.
    #[error("failed to resolve `{name}`: no answer within {} s", LIMIT.as_secs())]
    Slow {
        /// The name.
        name: String,
    },
    /// A name without A and AAAA records.
    #[error("`{name}` has no address")]
    Empty {
        /// The name.
        name: String,
    },
}

/// All A and AAAA addresses of `name`, each once.
pub async fn resolve(name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    let name = || name.to_owned();
    let found = match tokio::time::timeout(LIMIT, tokio::net::lookup_host((name(), 0))).await {
        Err(_) => return Err(ResolveError::Slow { name: name() }),
        Ok(Err(source)) => return Err(ResolveError::Lookup { name: name(), source }),
        Ok(Ok(found)) => found,
    };
    let mut addresses: Vec<_> = found.map(|socket| socket.ip()).collect();
    addresses.sort();
    addresses.dedup();
    match addresses.is_empty() {
        true => Err(ResolveError::Empty { name: name() }),
        false => Ok(addresses),
    }
}

/// Whether this host has a route to `address`. Sends nothing.
pub fn check_route(address: IpAddr) -> io::Result<()> {
    let unspecified: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((unspecified, 0))?.connect((address, 9))
}
