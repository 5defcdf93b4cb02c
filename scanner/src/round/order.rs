//! The order for one node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use deadlight_shared::wire::{Order, OrderMark, ReportedFinding};
use deadlight_shared::{Evidence, Finding, Name, Observation, Port, PortSet};
use jiff::Timestamp;

use crate::config::Node;
use crate::sweep::Sweep;

/// How long an order may take to arrive.
const FRESH: Duration = Duration::from_secs(600);

/// Everything on `node` that the allowlist does not cover and that is not proven closed. A port that
/// an earlier order closed need not be named again: at the agent only the allowlist opens one.
pub fn order_for(
    scanner: &Name,
    node: &Node,
    mark: OrderMark,
    sweep: &Sweep,
    findings: &[Finding],
    allow: PortSet,
    now: Timestamp,
) -> Order {
    let seen: BTreeMap<(IpAddr, Port), &Observation> = sweep
        .observations
        .iter()
        .filter(|seen| seen.node == node.name)
        .map(|seen| ((seen.address, seen.port), seen))
        .collect();
    let reported = |finding: &Finding| ReportedFinding {
        id: finding.id.clone(),
        address: finding.address,
        protocol: finding.protocol,
        port: finding.port,
        evidence: word(seen.get(&(finding.address, finding.port())).map(|seen| &seen.evidence)),
    };
    let ours = |finding: &&Finding| {
        finding.node == node.name && node.addresses.contains(&finding.address) && !finding.status.is_over()
    };
    Order {
        schema: Order::SCHEMA.to_owned(),
        scanner: scanner.clone(),
        epoch: mark.epoch,
        sequence: mark.sequence,
        scan: sweep.started.to_string(),
        node: node.name.clone(),
        expires_at: now + FRESH,
        findings: findings.iter().filter(ours).map(reported).collect(),
        allow,
        permit: None,
        peers: Vec::new(),
    }
}

/// Evidence as one short word.
fn word(evidence: Option<&Evidence>) -> String {
    match evidence {
        None | Some(Evidence::NotAsked(_)) => "not-asked".to_owned(),
        Some(evidence) => evidence.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::Tally;
    use deadlight_shared::{FindingId, FindingStatus, PortState};

    #[test]
    fn an_order_names_all_that_is_unexpected_on_its_node() {
        let node = Node {
            name: "n1".parse().unwrap(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            agent: None,
            labels: Vec::new(),
            control: None,
        };
        let at = |address: &str, node: &str, port: &str, status| {
            let (node, address, port): (Name, IpAddr, Port) =
                (node.parse().unwrap(), address.parse().unwrap(), port.parse().unwrap());
            let id = FindingId::of(&node, address, port);
            Finding { status, ..crate::assess::first_seen(&id, node, address, port, Timestamp::UNIX_EPOCH) }
        };
        let finding = |node: &str, port: &str, status| at("192.0.2.1", node, port, status);
        let findings = [
            at("192.0.2.77", "n1", "8080/tcp", FindingStatus::Open),
            finding("n1", "8080/tcp", FindingStatus::Open),
            finding("n1", "9000/tcp", FindingStatus::Resolved),
            finding("n1", "9001/tcp", FindingStatus::Accepted),
            finding("n1", "9002/tcp", FindingStatus::Enforced),
            finding("n2", "8080/tcp", FindingStatus::Open),
        ];
        let observation = Observation {
            node: node.name.clone(),
            address: "192.0.2.1".parse().unwrap(),
            port: "8080/tcp".parse().unwrap(),
            state: PortState::Open,
            evidence: Evidence::SynAck,
            attempts: 1,
            service: None,
        };
        let sweep = Sweep {
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            observations: vec![observation],
            unasked: Vec::new(),
            heard: Default::default(),
            liars: Default::default(),
            notes: Vec::new(),
            interrupted: false,
            settled: Default::default(),
            tally: Tally::default(),
            duration: Duration::ZERO,
        };
        let mark = OrderMark { epoch: 3, sequence: 17 };
        let scanner = "office-a".parse().unwrap();
        let allow = "80/tcp".parse().unwrap();
        let order = order_for(&scanner, &node, mark, &sweep, &findings, allow, Timestamp::UNIX_EPOCH);
        assert_eq!(order.check(), Ok(()));
        let named: Vec<_> = order.findings.iter().map(|f| format!("{} {}", f.port(), f.evidence)).collect();
        assert_eq!(named, ["8080/tcp syn-ack", "9002/tcp not-asked"]);
        assert_eq!(order.expires_at, Timestamp::from_second(600).unwrap());
    }
}
