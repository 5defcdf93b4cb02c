//! The node under test, its containers and its internet, wired up with Docker's rules in place.
//!
//! ```text
//!   inet  eth0 198.51.100.1, .2 ── eth0 198.51.100.11  node  docker_gwbridge 172.18.0.1 ── 172.18.0.2 sbox, .3 task
//!         2001:db8:51::1, ::2      2001:db8:51::11            docker0 172.17.0.1         ── 172.17.0.2 run
//! ```

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
};

use anyhow::Result;

use crate::{
    docker_rules::{self, Backend, ForwardPolicy, Layout},
    netns::Netns,
    process::run,
    server::Server,
};

/// The swarm ingress port that should not be open.
pub const INGRESS: u16 = 8080;
/// The swarm ingress port that the allowlist names.
pub const ALLOWED: u16 = 80;
/// The UDP ingress port.
pub const INGRESS_UDP: u16 = 5514;
/// `docker run -p 9000:80`.
pub const RUN: u16 = 9000;
/// A process of the node itself, TCP and UDP.
pub const HOST: u16 = 9100;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for loops.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// `port` on the node's outside interface.
    pub fn node(self, port: u16) -> SocketAddr {
        let address: IpAddr = match self {
            Self::V4 => Ipv4Addr::new(198, 51, 100, 11).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x11).into(),
        };
        (address, port).into()
    }

    /// Where the scanner is.
    pub fn scanner(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 51, 100, 1).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1).into(),
        }
    }

    /// Somebody else on the internet.
    pub fn stranger(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 51, 100, 2).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2).into(),
        }
    }

    /// `port` on every address.
    pub fn any(self, port: u16) -> SocketAddr {
        match self {
            Self::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
            Self::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The node and its internet, joined by one wire. The node has no Docker yet.
#[derive(Debug)]
pub struct Wire {
    /// The internet: the scanner's address and a stranger's.
    pub inet: Netns,
    /// The node; `eth0` is its outside interface.
    pub node: Netns,
}

impl Wire {
    /// Two namespaces, addresses of both families, the node's default routes towards the internet side.
    pub fn new() -> Result<Self> {
        let wire = Self { inet: Netns::new("inet")?, node: Netns::new("node")? };
        plug(&wire.node, "eth0", &wire.inet, "eth0")?;
        for address in ["198.51.100.1/24", "198.51.100.2/24", "2001:db8:51::1/64 nodad", "2001:db8:51::2/64 nodad"] {
            wire.inet.ip(&format!("addr add {address} dev eth0"))?;
        }
        for address in ["198.51.100.11/24", "2001:db8:51::11/64 nodad"] {
            wire.node.ip(&format!("addr add {address} dev eth0"))?;
        }
        wire.node.ip("route add default via 198.51.100.1")?;
        wire.node.ip("-6 route add default via 2001:db8:51::1 dev eth0")?;
        Ok(wire)
    }
}

/// A node with Docker's rules of some version and everything that listens behind them.
#[derive(Debug)]
pub struct Lab {
    // Services end before the namespaces they live in.
    /// Who answers on the swarm ingress port, in the sandbox.
    pub ingress: Server,
    /// Who answers on the UDP ingress port, in the sandbox.
    pub ingress_udp: Server,
    /// The node's own process, by family.
    pub host: [Server; 2],
    /// The node's own process over UDP, by family.
    pub host_udp: [Server; 2],
    /// What plays docker-proxy for [`RUN`] over IPv6.
    pub proxy: Server,
    _others: Vec<Server>,
    /// The node and its internet.
    pub wire: Wire,
    /// A container on docker_gwbridge; the inside client.
    pub task: Netns,
    /// Docker's ingress sandbox.
    pub sandbox: Netns,
    /// The container of `docker run -p 9000:80`.
    pub container: Netns,
    /// Whose chains these are.
    pub layout: Layout,
    /// In which flavour they live.
    pub backend: Backend,
}

impl Lab {
    /// Builds it all; returns when everything listens.
    pub fn new(layout: Layout, backend: Backend, forward: ForwardPolicy) -> Result<Self> {
        use_bridge_netfilter()?;
        let wire = Wire::new()?;
        let (sandbox, task, container) = (Netns::new("sbox")?, Netns::new("task")?, Netns::new("run")?);
        bridge(&wire.node, "docker_gwbridge", "172.18.0.1")?;
        bridge(&wire.node, "docker0", "172.17.0.1")?;
        contain(&wire.node, "docker_gwbridge", "172.18.0.1", &sandbox, "172.18.0.2")?;
        contain(&wire.node, "docker_gwbridge", "172.18.0.1", &task, "172.18.0.3")?;
        contain(&wire.node, "docker0", "172.17.0.1", &container, "172.17.0.2")?;
        wire.node.sysctl("net/ipv4/ip_forward", "1")?;
        wire.node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        wire.node.sysctl("net/ipv4/conf/docker_gwbridge/route_localnet", "1")?;
        docker_rules::load(&wire.node, layout, backend, forward)?;

        let (v4, v6) = (Family::V4, Family::V6);
        Ok(Self {
            ingress: Server::tcp(&sandbox, v4.any(INGRESS))?,
            ingress_udp: Server::udp(&sandbox, v4.any(INGRESS_UDP))?,
            host: [Server::tcp(&wire.node, v4.any(HOST))?, Server::tcp(&wire.node, v6.any(HOST))?],
            host_udp: [Server::udp(&wire.node, v4.any(HOST))?, Server::udp(&wire.node, v6.any(HOST))?],
            proxy: Server::tcp(&wire.node, v6.any(RUN))?,
            _others: vec![
                Server::tcp(&sandbox, v4.any(ALLOWED))?,
                Server::tcp(&container, v4.any(80))?,
                Server::tcp(&container, v4.any(8080))?,
                Server::deaf(&wire.node, v6.any(INGRESS))?,
                Server::deaf(&wire.node, v6.any(ALLOWED))?,
            ],
            wire,
            task,
            sandbox,
            container,
            layout,
            backend,
        })
    }

    /// The node's namespace.
    pub fn node(&self) -> &Netns {
        &self.wire.node
    }

    /// The internet's namespace.
    pub fn inet(&self) -> &Netns {
        &self.wire.inet
    }

    /// The node's own TCP service of a family.
    pub fn host(&self, family: Family) -> &Server {
        &self.host[family as usize]
    }

    /// The node's own UDP service of a family.
    pub fn host_udp(&self, family: Family) -> &Server {
        &self.host_udp[family as usize]
    }

    /// [`docker_rules::save`] of the node.
    pub fn saved_rules(&self) -> Result<String> {
        docker_rules::save(self.node(), self.backend)
    }

    /// [`docker_rules::reinsert_wide`] for a TCP ingress port.
    pub fn reinsert_wide(&self, port: u16) -> Result<()> {
        docker_rules::reinsert_wide(self.node(), self.layout, self.backend, "tcp", port)
    }

    /// The node's native nft tables, without those that iptables-nft keeps.
    pub fn native_tables(&self) -> Result<Vec<String>> {
        native_tables(self.node())
    }
}

/// The nft tables of `node` that are not iptables-nft's own (`ip filter`, `ip6 nat`, …).
pub fn native_tables(node: &Netns) -> Result<Vec<String>> {
    let listing = run(node.command("nft").args(["list", "tables"]))?;
    let of_iptables = |line: &&str| {
        let mut words = line.split(' ').skip(1);
        matches!(words.next(), Some("ip" | "ip6"))
            && matches!(words.next(), Some("raw" | "mangle" | "nat" | "filter" | "security"))
    };
    Ok(listing.lines().filter(|line| !of_iptables(line)).map(str::to_owned).collect())
}

/// On a real node Docker loads it: it is what brings a container's answer to another container of the same bridge
/// back through the node's address translation.
fn use_bridge_netfilter() -> Result<()> {
    if Path::new("/proc/sys/net/bridge").exists() {
        return Ok(());
    }
    run(Command::new("modprobe").arg("br_netfilter")).map(drop)
}

/// Joins two namespaces by a wire.
pub fn plug(here: &Netns, name: &str, there: &Netns, peer: &str) -> Result<()> {
    let (here_name, there_name) = (here.name(), there.name());
    run(Command::new("ip")
        .args(["link", "add", name, "netns", here_name, "type", "veth"])
        .args(["peer", "name", peer, "netns", there_name]))?;
    here.ip(&format!("link set {name} up"))?;
    there.ip(&format!("link set {peer} up"))
}

fn bridge(node: &Netns, name: &str, address: &str) -> Result<()> {
    node.ip(&format!("link add {name} type bridge"))?;
    node.ip(&format!("addr add {address}/16 dev {name}"))?;
    node.ip(&format!("link set {name} up"))
}

fn contain(node: &Netns, bridge: &str, gateway: &str, container: &Netns, address: &str) -> Result<()> {
    let port = format!("veth{}", address.replace('.', ""));
    plug(node, &port, container, "eth0")?;
    node.ip(&format!("link set {port} master {bridge}"))?;
    container.ip(&format!("addr add {address}/16 dev eth0"))?;
    container.ip(&format!("route add default via {gateway}"))
}
