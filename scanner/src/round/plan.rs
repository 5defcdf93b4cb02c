//! What to sweep.

use std::collections::BTreeMap;

use deadlight_shared::{Finding, Name, Port, PortSet, PortState};

use crate::assess::Expectation;
use crate::config::{Config, Node};
use crate::probe::Payloads;
use crate::store::State;
use crate::sweep::{Method, Plan, PlannedNode};

/// An allowlist with more ports than this for one node is not asked in full by a quick sweep.
const MOST_ALLOWED: usize = 1_024;

/// How much a round looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every configured port.
    Full,
    /// What was seen open, what has a finding on any node (an ingress port is open through all of them), and what may be
    /// open.
    Quick,
}

/// The ports of `scope`, the node's own, and everything on it that `known` has a finding of.
pub fn plan(config: &Config, scope: Scope, expectations: &[Expectation], known: &State, payloads: &Payloads) -> Plan {
    let quick = match scope {
        Scope::Full => Quick::default(),
        Scope::Quick => Quick::of(known),
    };
    let planned = |(node, expected): (&Node, &Expectation)| {
        let mut watched: PortSet =
            known.findings.iter().filter(|finding| finding.node == node.name).map(Finding::port).collect();
        watched.extend(&node.own_ports());
        let mut ports = match scope {
            Scope::Full => config.ports.clone(),
            Scope::Quick => quick.ports(node, expected),
        };
        ports.extend(&watched);
        watched.extend(&expected.ports);
        PlannedNode { name: node.name.clone(), addresses: node.addresses.clone(), ports, watched }
    };
    Plan {
        nodes: config.nodes.iter().zip(expectations).map(planned).collect(),
        method: Method::Auto,
        rate: config.rate,
        rate_per_node: config.rate_per_node,
        identify: config.identify,
        payloads: payloads.clone(),
        known: BTreeMap::new(),
    }
}

/// What a quick sweep asks besides what may be open.
#[derive(Debug, Default)]
struct Quick<'a> {
    /// Ports with a finding on any node.
    anywhere: PortSet,
    /// Ports that were seen open, by node; none of an address that is not believed.
    open: BTreeMap<&'a Name, Vec<Port>>,
}

impl<'a> Quick<'a> {
    fn of(known: &'a State) -> Self {
        let liars = known.liars();
        let mut open: BTreeMap<&Name, Vec<Port>> = BTreeMap::new();
        for (target, seen) in &known.seen {
            if seen.state == PortState::Open && !liars.contains_key(&target.address) {
                open.entry(&seen.node).or_default().push(target.port);
            }
        }
        Self { anywhere: known.findings.iter().map(Finding::port).collect(), open }
    }

    fn ports(&self, node: &Node, expected: &Expectation) -> PortSet {
        let mut ports: PortSet = self.open.get(&node.name).into_iter().flatten().copied().collect();
        ports.extend(&self.anywhere);
        if expected.ports.len() <= MOST_ALLOWED {
            ports.extend(&expected.ports);
        }
        ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assess::first_seen;
    use crate::store::{Seen, Target};
    use deadlight_shared::FindingId;
    use jiff::Timestamp;

    const CONFIG: &str = r#"
        [vantage]
        id = "office-a"
        [sweep]
        tcp = "1-100"
        udp = ""
        [[node]]
        name = "n1"
        addresses = ["198.51.100.11"]
        control = "22/tcp"
        [[node]]
        name = "n2"
        addresses = ["198.51.100.12", "2001:db8::12"]
        [[allow]]
        ports = "443/tcp"
        nodes = ["n2"]
        owner = "web"
        reason = "site"
        [[allow]]
        ports = "30000-32767/tcp"
        nodes = ["n1"]
        owner = "web"
        reason = "node ports"
    "#;

    fn known() -> State {
        let (node, address, port) =
            ("n1".parse().unwrap(), "198.51.100.11".parse().unwrap(), "8080/tcp".parse().unwrap());
        let finding = first_seen(&FindingId::of(&node, address, port), node, address, port, Timestamp::UNIX_EPOCH);
        let seen = |address: &str, port: &str, node: &str, state| {
            let target = Target { address: address.parse().unwrap(), port: port.parse().unwrap() };
            let (node, evidence, since) = (node.parse().unwrap(), String::new(), Timestamp::UNIX_EPOCH);
            (target, Seen { node, state, evidence, service: None, since })
        };
        let seen = [
            seen("198.51.100.11", "30001/tcp", "n1", PortState::Open),
            seen("2001:db8::12", "53/udp", "n2", PortState::Open),
            seen("198.51.100.12", "123/udp", "n2", PortState::Unknown),
        ];
        State { findings: vec![finding], seen: seen.into(), ..State::default() }
    }

    #[test]
    fn a_quick_sweep_asks_what_is_known_and_what_is_allowed() {
        let today = jiff::civil::date(2026, 11, 29);
        let config = Config::parse(CONFIG, "scanner.toml".as_ref(), today).unwrap();
        let expectations = config.expectations(today);
        let ports = |scope| -> Vec<String> {
            let plan = plan(&config, scope, &expectations, &known(), &Payloads::builtin());
            plan.nodes.iter().map(|node| node.ports.to_string()).collect()
        };
        assert_eq!(ports(Scope::Quick), ["22/tcp,8080/tcp,30001/tcp", "443/tcp,8080/tcp,53/udp"]);
        assert_eq!(ports(Scope::Full), ["1-100/tcp,8080/tcp", "1-100/tcp"]);
    }
}
