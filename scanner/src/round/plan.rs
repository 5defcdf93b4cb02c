//! What to sweep.

use std::collections::BTreeMap;

use deadlight_shared::{Finding, PortSet};

use crate::assess::Expectation;
use crate::config::{Config, Node};
use crate::probe::Payloads;
use crate::sweep::{Method, Plan, PlannedNode};

/// The configured ports, the node's own, and everything that has a finding.
pub fn plan(config: &Config, expectations: &[Expectation], known: &[Finding], payloads: &Payloads) -> Plan {
    let planned = |(node, expected): (&Node, &Expectation)| {
        let mut watched: PortSet =
            known.iter().filter(|finding| finding.node == node.name).map(Finding::port).collect();
        watched.extend(&node.own_ports());
        let mut ports = config.ports.clone();
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
