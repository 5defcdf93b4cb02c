//! Docker's own rules: read, and tightened where they are wider than they need to be.

mod allow;
pub(super) mod guard;
mod ingress;
mod save;

use std::fmt::Write as _;
use std::net::IpAddr;

use deadlight_shared::{Port, Protocol};

use super::{Desired, DockerRules};

pub use save::{Save, SaveError};

/// What our rules in foreign tables carry as their comment.
const MARK: &str = "-m comment --comment deadlight";

/// Which kernel interface the iptables programs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The program that an operator would use.
    pub fn tool(self) -> &'static str {
        if self == Self::V4 { "iptables" } else { "ip6tables" }
    }

    /// Whether `address` is of this family.
    pub fn holds(self, address: IpAddr) -> bool {
        (self == Self::V4) == address.is_ipv4()
    }
}

/// The program that saves or restores tables, such as `ip6tables-legacy-save`.
pub fn program(family: Family, flavour: Flavour, verb: &str) -> String {
    let flavour = if flavour == Flavour::Nft { "nft" } else { "legacy" };
    format!("{}-{flavour}-{verb}", family.tool())
}

/// One rule by which Docker publishes a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dnat {
    /// `DOCKER-INGRESS` for the routing mesh, `DOCKER` for a single container.
    pub chain: &'static str,
    /// The published port.
    pub port: Port,
    /// The address it is published on, when it is not every address.
    pub on: Option<IpAddr>,
    /// Where it goes: ingress sandbox or container.
    pub to: IpAddr,
    /// The port there.
    pub to_port: u16,
}

/// The rules of `save` by which Docker publishes ports to the outside.
pub fn dnat_rules(save: &Save) -> Vec<Dnat> {
    ["DOCKER-INGRESS", "DOCKER"]
        .into_iter()
        .flat_map(|chain| save.rules("nat", chain).filter_map(move |rule| parse_dnat(chain, rule)))
        .filter(|dnat| dnat.on.is_none_or(|address| !address.is_loopback()))
        .collect()
}

/// Lines for a program, and the ports that they shut or tighten.
pub type Script = (String, Vec<Port>);

/// The script for `iptables-restore --noflush` that makes Docker's filter table as `desired` says;
/// none when it is so already.
pub fn script(save: &Save, family: Family, desired: &Desired) -> Option<Script> {
    let (filter, ports) = tighten(save, family, desired);
    render([("filter", filter)]).map(|script| (script, ports))
}

/// The same, with the guard in the same tables: for a kernel without nf_tables.
pub fn script_with_guard(save: &Save, family: Family, desired: &Desired) -> Option<Script> {
    let (mut filter, _) = tighten(save, family, desired);
    // Last, so that the places of the other rules are as they were read.
    filter.extend(guard::filter(save, family, desired));
    let script = render([("mangle", guard::mangle(save, family, desired)), ("filter", filter)]);
    script.map(|script| (script, desired.closed.iter().collect()))
}

/// The lines of DOCKER-INGRESS that stand for `port` once `desired` is in force.
pub fn lines_for(port: Port, desired: &Desired, docker: &DockerRules) -> Vec<String> {
    let sources = desired.inner_sources();
    let families = Family::ALL.into_iter().filter(|family| docker.has_ingress(port, *family));
    families
        .flat_map(|family| {
            let rules = ingress::tightened(port, family, &sources);
            rules.into_iter().map(move |rule| format!("{} -A DOCKER-INGRESS {rule}", family.tool()))
        })
        .collect()
}

/// Our own rules in `save`, table first where it is not `filter`.
pub fn owned(save: &Save) -> Vec<String> {
    let rules = |table: &'static str| save.all_rules(table).filter(|rule| is_ours(rule));
    rules("mangle").map(|rule| format!("mangle {rule}")).chain(rules("filter").map(str::to_owned)).collect()
}

/// Whether `rule` is ours: by its mark, or because it stands in a chain of ours.
pub fn is_ours(rule: &str) -> bool {
    rule.contains(MARK) || rule.starts_with("-A DEADLIGHT")
}

fn tighten(save: &Save, family: Family, desired: &Desired) -> (Vec<String>, Vec<Port>) {
    let (ingress, ports) = ingress::changes(save, family, desired);
    let (chain, jump) = allow::changes(save, desired);
    (chain.into_iter().chain(jump).chain(ingress).collect(), ports)
}

/// Each table that needs lines, in one input.
fn render<const N: usize>(tables: [(&str, Vec<String>); N]) -> Option<String> {
    let mut script = String::new();
    for (table, lines) in tables.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        let _infallible = writeln!(script, "*{table}\n{}\nCOMMIT", lines.join("\n"));
    }
    (!script.is_empty()).then_some(script)
}

fn parse_dnat(chain: &'static str, rule: &str) -> Option<Dnat> {
    let value = |option: &str| {
        let mut words = rule.split(' ').skip_while(|word| *word != option);
        words.nth(1)
    };
    let protocol: Protocol = value("-p")?.parse().ok()?;
    let port = Port::new(protocol, value("--dport")?.parse().ok()?)?;
    let destination: std::net::SocketAddr = value("--to-destination")?.parse().ok()?;
    let on = value("-d").and_then(|net| net.split('/').next()?.parse().ok());
    Some(Dnat { chain, port, on, to: destination.ip(), to_port: destination.port() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_dnat_rules_of_both_families() {
        let save = Save::parse(
            "*nat\n:DOCKER - [0:0]\n:DOCKER-INGRESS - [0:0]\n\
             -A DOCKER -i docker0 -j RETURN\n\
             -A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 172.17.0.2:80\n\
             -A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp -m tcp --dport 9001 -j DNAT --to-destination 172.17.0.2:81\n\
             -A DOCKER ! -i docker0 -p udp -m udp --dport 9002 -j DNAT --to-destination [fd00::2]:82\n\
             -A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:8080\n\
             -A DOCKER-INGRESS -j RETURN\nCOMMIT\n",
        )
        .unwrap();
        let shown: Vec<_> = dnat_rules(&save)
            .iter()
            .map(|dnat| format!("{} {} -> {} {}", dnat.chain, dnat.port, dnat.to, dnat.to_port))
            .collect();
        assert_eq!(
            shown,
            [
                "DOCKER-INGRESS 8080/tcp -> 172.18.0.2 8080",
                "DOCKER 9000/tcp -> 172.17.0.2 80",
                "DOCKER 9002/udp -> fd00::2 82"
            ]
        );
    }
}
