//! Docker's ruleset as an engine of a given version leaves it in the kernel, and what that engine does to it later.

use std::{fmt, ops::Range};

use anyhow::Result;

use crate::{
    netns::Netns,
    process::{run, run_with_input},
};

/// Which engine's way of arranging its chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Docker 20.10.
    V20_10,
    /// Docker 26.1.
    V26,
    /// Docker 28.5.
    V28,
}

/// The flavour of iptables that Docker uses on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// The policy of the FORWARD chain: dockerd sets DROP only where it switched `ip_forward` on itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardPolicy {
    /// What no rule accepts is dropped.
    Drop,
    /// What no rule drops is accepted.
    Accept,
}

impl Layout {
    fn ipv4(self) -> &'static str {
        match self {
            Self::V20_10 => include_str!("../fixtures/docker/20.10-v4.rules"),
            Self::V26 => include_str!("../fixtures/docker/26-v4.rules"),
            Self::V28 => include_str!("../fixtures/docker/28-v4.rules"),
        }
    }

    /// Engines before 27 write no IPv6 rules unless told to.
    fn ipv6(self) -> Option<&'static str> {
        match self {
            Self::V20_10 | Self::V26 => None,
            Self::V28 => Some(include_str!("../fixtures/docker/28-v6.rules")),
        }
    }

    fn established(self) -> [&'static str; 4] {
        match self {
            Self::V20_10 => ["-m", "state", "--state", "ESTABLISHED,RELATED"],
            Self::V26 | Self::V28 => ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"],
        }
    }
}

impl Backend {
    /// The word in the names of the tools: `iptables-nft-save`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// `iptables-nft`, `ip6tables-legacy-save`, …; `family` is `iptables` or `ip6tables`, `suffix` the rest.
    pub fn tool(self, family: &str, suffix: &str) -> String {
        format!("{family}-{}{suffix}", self.name())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Loads the ruleset of `layout` into a node that has none; rules of others stay.
pub fn load(node: &Netns, layout: Layout, backend: Backend, forward: ForwardPolicy) -> Result<()> {
    let policy = match forward {
        ForwardPolicy::Drop => "DROP",
        ForwardPolicy::Accept => "ACCEPT",
    };
    let ipv4 = layout.ipv4().replace("@FORWARD@", policy);
    let restore =
        |family, rules: &str| run_with_input(node.command(backend.tool(family, "-restore")).arg("--noflush"), rules);
    restore("iptables", &ipv4)?;
    layout.ipv6().map_or(Ok(()), |ipv6| restore("ip6tables", ipv6))
}

/// All tables of both families as the save tools print them, without counters and time stamps.
pub fn save(node: &Netns, backend: Backend) -> Result<String> {
    let families = ["iptables", "ip6tables"].map(|family| {
        let saved = save_family(node, backend, family)?;
        Ok(format!("# {family}\n{saved}"))
    });
    families.into_iter().collect()
}

/// The same of one family, `iptables` or `ip6tables`.
pub fn save_family(node: &Netns, backend: Backend, family: &str) -> Result<String> {
    let saved = run(&mut node.command(backend.tool(family, "-save")))?;
    let mut text = String::new();
    for line in saved.lines().filter(|line| !line.starts_with('#')) {
        // ":FORWARD DROP [12:3456]"
        let kept = if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line };
        text.push_str(kept);
        text.push('\n');
    }
    Ok(text)
}

/// What dockerd runs for an ingress port when its only task is replaced: the exact rules are deleted, which fails
/// where somebody altered them and does not matter to dockerd, and then inserted on top.
pub fn reinsert_wide(node: &Netns, layout: Layout, backend: Backend, protocol: &str, port: u16) -> Result<()> {
    let port_text = port.to_string();
    let destination = format!("172.18.0.2:{port}");
    let published = ["-p", protocol, "--dport", &port_text];
    let replies = [["-p", protocol, "--sport", &port_text], layout.established()].concat();
    let rules: [Vec<&str>; 3] = [
        [&published[..], &["-j", "DNAT", "--to-destination", &destination]].concat(),
        [&replies[..], &["-j", "ACCEPT"]].concat(),
        [&published[..], &["-j", "ACCEPT"]].concat(),
    ];
    let command = |verb: &str, table: &[&str], rule: &[&str]| {
        let mut command = node.command(backend.tool("iptables", ""));
        command.arg("--wait").args(table).args([verb, "DOCKER-INGRESS"]).args(rule);
        run(&mut command)
    };
    let tables: [&[&str]; 3] = [&["-t", "nat"], &[], &[]];
    for (table, rule) in tables.iter().zip(&rules) {
        command("-D", table, rule).ok();
    }
    for (table, rule) in tables.iter().zip(&rules) {
        command("-I", table, rule)?;
    }
    Ok(())
}

/// Publishes many TCP ports by the mesh at once, as that many services would.
pub fn publish(node: &Netns, backend: Backend, ports: Range<u16>) -> Result<()> {
    let rules = |rule: fn(u16) -> String| ports.clone().map(|port| rule(port) + "\n").collect::<String>();
    let nat =
        rules(|port| format!("-I DOCKER-INGRESS -p tcp --dport {port} -j DNAT --to-destination 172.18.0.2:{port}"));
    let filter = rules(|port| format!("-I DOCKER-INGRESS -p tcp --dport {port} -j ACCEPT"));
    let script = format!("*nat\n{nat}COMMIT\n*filter\n{filter}COMMIT\n");
    run_with_input(node.command(backend.tool("iptables", "-restore")).arg("--noflush"), &script)
}

/// The DOCKER-INGRESS rules that accept `port`, in order, as `iptables-save` prints them: that takes no lock.
pub fn ingress_accepts(node: &Netns, backend: Backend, port: u16) -> Result<Vec<String>> {
    let saved = save_family(node, backend, "iptables")?;
    let needle = format!("--dport {port} ");
    let accepts = |line: &&str| line.starts_with("-A DOCKER-INGRESS ") && line.ends_with(" -j ACCEPT");
    Ok(saved.lines().filter(accepts).filter(|line| line.contains(&needle)).map(str::to_owned).collect())
}
