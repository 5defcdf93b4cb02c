//! From what a person types to nodes with addresses.

use std::net::IpAddr;
use std::str::FromStr;

use deadlight_shared::Name;
use deadlight_shared::hint::causes;
use deadlight_shared::name::NameError;
use deadlight_shared::text::printable;
use ipnet::IpNet;

use crate::net::{ResolveError, resolve};

/// Most addresses in one CIDR block.
const MOST_ADDRESSES: u32 = 4_096;

/// A target of a scan: an address, a CIDR block, or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One address.
    Address(IpAddr),
    /// Every host address of a block.
    Block(IpNet),
    /// Every A and AAAA address of a name.
    Name(Name),
}

/// Why a text is no target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Too many addresses.
    #[error("{0} holds more than {MOST_ADDRESSES} addresses: scan it in smaller blocks")]
    TooLarge(IpNet),
    /// Neither address nor block nor name.
    #[error("`{}` is neither an address nor a CIDR block such as 198.51.100.0/24 nor a host name", printable(.0, 80))]
    Malformed(String),
}

/// A name without an address.
#[derive(Debug)]
pub struct Unresolved {
    /// The name.
    pub target: Name,
    /// Why.
    pub error: ResolveError,
}

impl Unresolved {
    /// Why, in one sentence with its causes.
    pub fn reason(&self) -> String {
        causes(&self.error)
    }
}

impl Target {
    /// The nodes that the target stands for, each with all its addresses.
    pub async fn nodes(&self) -> Result<Vec<(Name, Vec<IpAddr>)>, Unresolved> {
        match self {
            Self::Address(address) => Ok(vec![(name_of(*address), vec![*address])]),
            Self::Block(block) => Ok(block.hosts().map(|address| (name_of(address), vec![address])).collect()),
            Self::Name(name) => match resolve(name.as_str()).await {
                Ok(addresses) => Ok(vec![(name.clone(), addresses)]),
                Err(error) => Err(Unresolved { target: name.clone(), error }),
            },
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Ok(block) = text.parse::<IpNet>() {
            let host_bits = u32::from(block.max_prefix_len() - block.prefix_len());
            return match host_bits <= MOST_ADDRESSES.ilog2() {
                true => Ok(Self::Block(block.trunc())),
                false => Err(TargetError::TooLarge(block)),
            };
        }
        let malformed = |_: NameError| TargetError::Malformed(text.to_owned());
        let name: Name = text.parse().map_err(malformed)?;
        // "300.1.2.3" and "1.2.3" are mistyped addresses; the resolver would take the second as 1.2.0.3.
        match text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            true => Err(TargetError::Malformed(text.to_owned())),
            false => Ok(Self::Name(name)),
        }
    }
}

/// All nodes of `targets`, an address only once; and the names that have none.
pub async fn nodes_of(targets: &[Target]) -> (Vec<(Name, Vec<IpAddr>)>, Vec<Unresolved>) {
    let (mut nodes, mut unresolved) = (Vec::new(), Vec::new());
    let mut taken = std::collections::BTreeSet::new();
    for target in targets {
        match target.nodes().await {
            Ok(found) => nodes.extend(found),
            Err(error) => unresolved.push(error),
        }
    }
    nodes.retain_mut(|(_, addresses)| {
        addresses.retain(|address| taken.insert(*address));
        !addresses.is_empty()
    });
    (nodes, unresolved)
}

/// An address as a node's name: IPv6 with dashes, as `2001-db8--1`.
fn name_of(address: IpAddr) -> Name {
    let text = address.to_string().replace(':', "-");
    let text = if text.starts_with('-') { format!("0{text}") } else { text };
    text.parse().unwrap_or_else(|_| unreachable!("digits, letters, dots and dashes make a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(texts: &[&str]) -> Vec<String> {
        let targets: Vec<Target> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (nodes, unresolved) = runtime.block_on(nodes_of(&targets));
        assert!(unresolved.is_empty());
        nodes.into_iter().map(|(name, addresses)| format!("{name} {addresses:?}")).collect()
    }

    #[test]
    fn addresses_and_blocks_become_nodes() {
        assert_eq!(nodes(&["192.0.2.1", "192.0.2.1/32"]), ["192.0.2.1 [192.0.2.1]"]);
        assert_eq!(nodes(&["192.0.2.7/30"]), ["192.0.2.5 [192.0.2.5]", "192.0.2.6 [192.0.2.6]"]);
        assert_eq!(nodes(&["::1"]), ["0--1 [::1]"]);
        assert_eq!(nodes(&["2001:db8::8/127"]).len(), 2);
        assert_eq!(nodes(&["192.0.0.0/20"]).len(), 4_094);
    }

    #[test]
    fn refuses_by_name() {
        let error = |text: &str| text.parse::<Target>().unwrap_err().to_string();
        assert!(error("192.0.0.0/19").contains("more than 4096 addresses"));
        assert!(error("2001:db8::/64").contains("more than 4096 addresses"));
        for text in ["300.1.2.3", "1.2.3", "a b", "", "http://x/", "192.0.2.1/33", "-n"] {
            assert!(error(text).contains("neither an address"), "{text}");
        }
        assert_eq!("n1.example.net".parse::<Target>().unwrap(), Target::Name("n1.example.net".parse().unwrap()));
    }
}
