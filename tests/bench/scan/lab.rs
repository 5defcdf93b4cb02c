//! A scanner and a node with some addresses, in two namespaces.
//!
//! ```text
//!   scanner  eth0 203.0.113.2, 2001:db8:1::2 ── (wan) ── eth0 203.0.113.1, 2001:db8:1::1  node  lo 198.51.100.1 …, 2001:db8:51::1 …
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Context, Result};
use deadlight_tests::{
    lab::plug,
    netns::Netns,
    process::{run, run_with_input},
    wan::{Wan, Weather},
};

use super::services::Services;

/// Address and port.
pub(crate) type Target = (IpAddr, u16);

/// How the node treats what is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shut {
    Refuse,
    Drop,
}

pub(crate) struct Lab {
    /// What is open, over TCP or UDP.
    pub(crate) open: BTreeSet<Target>,
    // Services end before the namespaces they live in.
    _services: Services,
    pub(crate) line: Line,
}

/// The two namespaces and what joins them.
pub(crate) struct Line {
    _wan: Option<Wan>,
    pub(crate) scanner: Netns,
    pub(crate) node: Netns,
}

/// Which addresses nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    /// IPv4 and IPv6 by turns.
    Both,
}

/// Addresses of the nodes; of each family there are 254.
pub(crate) fn addresses(count: u16, families: Families) -> Vec<IpAddr> {
    let v4 = (1..=254).map(|number| IpAddr::from(Ipv4Addr::new(198, 51, 100, number)));
    let v6 = (1..=254).map(|number| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number)));
    let all: Vec<_> = match families {
        Families::V4 => v4.collect(),
        Families::V6 => v6.collect(),
        Families::Both => v4.zip(v6).flat_map(|(v4, v6)| [v4, v6]).collect(),
    };
    all.into_iter().take(count.into()).collect()
}

impl Line {
    /// Joins the two by a wire, or by a line with its weather.
    pub(crate) fn new(weather: Option<Weather>) -> Result<Self> {
        let (scanner, node) = (Netns::new("scan")?, Netns::new("node")?);
        let wan = match weather {
            None => {
                plug(&scanner, "eth0", &node, "eth0")?;
                None
            }
            Some(weather) => Some(Wan::new(&scanner, &node, "eth0", weather)?),
        };
        scanner.ip("addr add 203.0.113.2/24 dev eth0")?;
        scanner.ip("addr add 2001:db8:1::2/64 dev eth0 nodad")?;
        node.ip("addr add 203.0.113.1/24 dev eth0")?;
        node.ip("addr add 2001:db8:1::1/64 dev eth0 nodad")?;
        scanner.ip("route add default via 203.0.113.1")?;
        scanner.ip("-6 route add default via 2001:db8:1::1 dev eth0")?;
        Ok(Self { _wan: wan, scanner, node })
    }

    /// From now on the node answers at `addresses`.
    pub(crate) fn answer_at(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<()> {
        let nodad = |address: IpAddr| if address.is_ipv6() { " nodad" } else { "" };
        let lines = addresses.into_iter().map(|address| format!("addr add {address} dev lo{}\n", nodad(address)));
        let mut ip = Command::new("ip");
        run_with_input(ip.args(["-n", self.node.name(), "-batch", "-"]), &lines.collect::<String>())
    }
}

impl Lab {
    /// `tcp` listens, the UDP services are there where `udp` is, everything else is `shut`.
    pub(crate) fn new(tcp: BTreeSet<Target>, udp: &[IpAddr], shut: Shut, weather: Option<Weather>) -> Result<Self> {
        let line = Line::new(weather)?;
        let here: BTreeSet<IpAddr> = tcp.iter().map(|(address, _)| *address).chain(udp.iter().copied()).collect();
        line.answer_at(here)?;
        run_with_input(line.node.command("nft").args(["-f", "-"]), &rules(&tcp, shut))?;
        let services = Services::start(&line.node, &tcp, udp)?;
        let mut open = tcp;
        open.extend(udp.iter().flat_map(|address| super::services::UDP.map(|port| (*address, port))));
        Ok(Self { open, _services: services, line })
    }

    /// First packets of a handshake, and datagrams, that have reached the node since the last call.
    pub(crate) fn packets(&self) -> Result<u64> {
        let listing = run(self.line.node.command("nft").args(["reset", "counters", "table", "inet", "bench"]))?;
        let mut words = listing.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).context("no counter")?.parse().context("the counter is no number")
    }
}

fn rules(open: &BTreeSet<Target>, shut: Shut) -> String {
    let set = |v6: bool| {
        let elements: Vec<_> = open
            .iter()
            .filter(|(address, _)| address.is_ipv6() == v6)
            .map(|(address, port)| format!("{address} . {port}"))
            .collect();
        let (name, kind) = if v6 { ("open6", "ipv6_addr") } else { ("open4", "ipv4_addr") };
        let elements =
            if elements.is_empty() { String::new() } else { format!("elements = {{ {} }};", elements.join(", ")) };
        format!("set {name} {{ type {kind} . inet_service; {elements} }}\n")
    };
    let drop = match shut {
        Shut::Refuse => "",
        Shut::Drop => {
            "chain input { type filter hook input priority 0; policy drop; iif lo accept; meta l4proto { icmp, ipv6-icmp } accept;\n\
             ip daddr . tcp dport @open4 accept; ip6 daddr . tcp dport @open6 accept; }\n"
        }
    };
    format!(
        "table inet bench {{\n{}{}counter asked {{ }}\n\
         chain count {{ type filter hook prerouting priority -400; iif lo accept;\n\
         tcp flags & (syn|ack) == syn counter name asked accept; meta l4proto udp counter name asked; }}\n{drop}}}\n",
        set(false),
        set(true)
    )
}
