//! One turn of the loop, as decisions: who is ordered what, what a report changes, what has to be
//! proven, and how it ended. Pure: no socket, no clock.

mod news;
mod order;
mod plan;
mod result;
mod turn;

pub use news::{Contradiction, News};
pub use order::order_for;
pub use plan::{Scope, plan};
pub use result::{Ending, ending};
pub use turn::Turn;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use deadlight_shared::wire::{ClosedPort, Outcome, OutcomeStatus, Report, Status};
use deadlight_shared::{Finding, FindingId, FindingStatus, Name, Port, PortSet};
use jiff::Timestamp;

use crate::assess::{Assessment, Expectation, first_seen};
use crate::config::{Config, Node};
use crate::prove::Verdict;
use crate::sweep::{Checked, Rescan};

/// Takes over what an agent says about its findings. What our own probes have proven stays proven.
pub fn take_report(assessment: &mut Assessment, report: &Report) {
    let outcomes: BTreeMap<&FindingId, &Outcome> = report.outcomes.iter().map(|o| (&o.finding, o)).collect();
    let proven = |finding: &Finding| finding.status == FindingStatus::Resolved;
    for finding in assessment.findings.iter_mut().filter(|finding| finding.node == report.node && !proven(finding)) {
        finding.status = match outcomes.get(&finding.id).map(|outcome| outcome.status) {
            Some(OutcomeStatus::Enforced) => FindingStatus::Enforced,
            Some(OutcomeStatus::Observed) => FindingStatus::Observed,
            Some(OutcomeStatus::Refused) => FindingStatus::Refused,
            Some(OutcomeStatus::Failed) => FindingStatus::Failed,
            Some(OutcomeStatus::Pending) => FindingStatus::Reported,
            None => continue,
        };
    }
}

/// Packets that the guard dropped for each port of `report` between it and `status`.
pub fn dropped_since(report: &Report, status: &Status) -> BTreeMap<(Name, Port), u64> {
    let before: BTreeMap<Port, u64> = report.outcomes.iter().map(|o| (o.port(), o.dropped)).collect();
    let grown = |closed: &ClosedPort| {
        let before = before.get(&closed.port)?;
        Some(((report.node.clone(), closed.port), closed.dropped.saturating_sub(*before)))
    };
    status.closed.iter().filter_map(grown).collect()
}

/// What to look at again: every port that has a finding to be proven, at every address of every
/// node that is concerned, because an ingress port is open through all of them.
pub fn rescans(
    config: &Config,
    expectations: &[Expectation],
    assessment: &Assessment,
    ordered: &BTreeSet<Name>,
) -> Vec<Rescan> {
    let to_prove = |finding: &&Finding| needs_proof(finding, &assessment.exposed);
    let ports: PortSet = assessment.findings.iter().filter(to_prove).map(Finding::port).collect();
    let concerned: BTreeSet<&Name> =
        assessment.findings.iter().filter(to_prove).map(|finding| &finding.node).chain(ordered).collect();
    let known: BTreeMap<&FindingId, &Finding> = assessment.findings.iter().map(|f| (&f.id, f)).collect();
    let wanted = |node: &Node, address: IpAddr, port: Port| match known.get(&FindingId::of(&node.name, address, port)) {
        Some(finding) => to_prove(finding),
        None => true,
    };
    let mut rescans = Vec::new();
    let nodes = config.nodes.iter().zip(expectations).filter(|(node, _)| concerned.contains(&node.name));
    for (node, Expectation { ports: expected, .. }) in nodes {
        for &address in &node.addresses {
            let asked = |port: &Port| !expected.contains(*port) && wanted(node, address, *port);
            let ports: Vec<Port> = ports.iter().filter(asked).collect();
            if !ports.is_empty() {
                rescans.push(Rescan { node: node.name.clone(), address, ports, control: node.control_port() });
            }
        }
    }
    rescans
}

/// Takes over what the rescan showed. A port that is still open although its agent closed it has
/// failed, and contradicts the agent; one that nobody knew is a new finding.
pub fn take_proofs(assessment: &mut Assessment, checked: &[Checked], now: Timestamp) -> Vec<Contradiction> {
    let mut contradictions = Vec::new();
    for Checked { node, address, port, verdict } in checked {
        let id = FindingId::of(node, *address, *port);
        let known = assessment.findings.iter_mut().find(|finding| finding.id == id);
        match (verdict, known) {
            (Verdict::Closed(_), Some(finding)) => finding.status = FindingStatus::Resolved,
            (Verdict::StillOpen, Some(finding)) => {
                if finding.status == FindingStatus::Enforced {
                    let (node, address, port) = (node.clone(), *address, *port);
                    contradictions.push(Contradiction { node, address, port });
                }
                finding.status = FindingStatus::Failed;
                assessment.exposed.insert(id);
            }
            (Verdict::StillOpen, None) => {
                assessment.findings.push(first_seen(&id, node.clone(), *address, *port, now));
                assessment.exposed.insert(id);
            }
            (Verdict::Closed(_), None) | (Verdict::Unproven(_), _) => {}
        }
    }
    contradictions
}

/// Closed by the agent, or gone by itself, and not shown to be closed yet.
fn needs_proof(finding: &Finding, exposed: &BTreeSet<FindingId>) -> bool {
    match finding.status {
        status if status.is_over() => false,
        FindingStatus::Enforced => true,
        _ => !exposed.contains(&finding.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::{Evidence, Unproven};
    use deadlight_shared::Protocol;
    use deadlight_shared::wire::{Cause, CauseKind, Mode, OrderMark};

    const CONFIG: &str = r#"
        [vantage]
        id = "office-a"
        [[node]]
        name = "n1"
        addresses = ["198.51.100.11", "2001:db8::11"]
        control = "22/tcp"
        [[node]]
        name = "n2"
        addresses = ["198.51.100.12"]
        [[node]]
        name = "n3"
        addresses = ["198.51.100.13"]
        [[allow]]
        ports = "8080/tcp"
        nodes = ["n3"]
        owner = "x"
        reason = "y"
    "#;
    const TODAY: jiff::civil::Date = jiff::civil::date(2026, 11, 23);

    fn finding(node: &str, address: &str, port: &str, status: FindingStatus) -> Finding {
        let (node, address, port): (Name, IpAddr, Port) =
            (node.parse().unwrap(), address.parse().unwrap(), port.parse().unwrap());
        let id = FindingId::of(&node, address, port);
        Finding { status, ..first_seen(&id, node, address, port, Timestamp::UNIX_EPOCH) }
    }

    fn assessment(findings: Vec<Finding>) -> Assessment {
        let exposed = findings.iter().map(|finding| finding.id.clone()).collect();
        Assessment { findings, exposed, missing: Vec::new() }
    }

    fn looks(assessment: &Assessment, ordered: &[&str]) -> Vec<String> {
        let config = Config::parse(CONFIG, "scanner.toml".as_ref(), TODAY).unwrap();
        let ordered = ordered.iter().map(|name| name.parse().unwrap()).collect();
        let rescans = rescans(&config, &config.expectations(TODAY), assessment, &ordered);
        let ports = |rescan: &Rescan| rescan.ports.iter().copied().collect::<PortSet>();
        rescans.iter().map(|rescan| format!("{} {} {}", rescan.node, rescan.address, ports(rescan))).collect()
    }

    const V4: &str = "198.51.100.11";

    #[test]
    fn the_rescan_covers_every_address_of_every_ordered_node() {
        let closed = assessment(vec![finding("n1", V4, "8080/tcp", FindingStatus::Enforced)]);
        let all = ["n1", "n2", "n3"];
        let wanted = ["n1 198.51.100.11 8080/tcp", "n1 2001:db8::11 8080/tcp", "n2 198.51.100.12 8080/tcp"];
        assert_eq!(looks(&closed, &all), wanted, "it is allowed on n3");
        assert_eq!(looks(&closed, &[]), wanted[..2]);
        for status in [FindingStatus::Observed, FindingStatus::Refused, FindingStatus::Failed, FindingStatus::Open] {
            let open = assessment(vec![finding("n1", V4, "8080/tcp", status)]);
            assert_eq!(looks(&open, &all), [""; 0], "{status}");
        }
    }

    #[test]
    fn a_finding_that_went_away_is_proven_too() {
        let mut gone = assessment(vec![finding("n1", V4, "8080/tcp", FindingStatus::Open)]);
        gone.exposed.clear();
        assert_eq!(looks(&gone, &[]), ["n1 198.51.100.11 8080/tcp", "n1 2001:db8::11 8080/tcp"]);
        gone.findings[0].status = FindingStatus::Resolved;
        assert_eq!(looks(&gone, &["n1"]), [""; 0]);
    }

    #[test]
    fn a_report_changes_its_own_node_and_nothing_that_is_proven() {
        let findings = vec![
            finding("n1", V4, "8080/tcp", FindingStatus::Open),
            finding("n1", V4, "9000/tcp", FindingStatus::Resolved),
            finding("n1", V4, "9001/tcp", FindingStatus::Open),
            finding("n2", "198.51.100.12", "8080/tcp", FindingStatus::Open),
        ];
        let outcome = |finding: &Finding| Outcome {
            finding: finding.id.clone(),
            protocol: Protocol::Tcp,
            port: finding.port,
            status: OutcomeStatus::Enforced,
            reason: String::new(),
            cause: Cause::new(CauseKind::Unknown),
            rules: Vec::new(),
            dropped: 0,
        };
        let outcomes = [0, 1, 3].map(|index: usize| outcome(&findings[index])).into();
        let report = Report {
            schema: Report::SCHEMA.to_owned(),
            node: "n1".parse().unwrap(),
            mode: Mode::Enforce,
            order: OrderMark { epoch: 1, sequence: 1 },
            outcomes,
            warnings: Vec::new(),
        };
        let mut assessment = assessment(findings);
        take_report(&mut assessment, &report);
        let statuses: Vec<_> = assessment.findings.iter().map(|finding| finding.status.as_str()).collect();
        assert_eq!(statuses, ["enforced", "resolved", "open", "open"]);
    }

    #[test]
    fn what_answers_although_its_agent_closed_it_is_a_contradiction() {
        for (said, contradicts) in [
            (FindingStatus::Enforced, true),
            (FindingStatus::Open, false),
            (FindingStatus::Reported, false),
            (FindingStatus::Failed, false),
        ] {
            let mut assessment = assessment(vec![finding("n1", V4, "8080/tcp", said)]);
            let (node, address, port): (Name, IpAddr, Port) =
                ("n1".parse().unwrap(), V4.parse().unwrap(), "8080/tcp".parse().unwrap());
            let checked = Checked { node: node.clone(), address, port, verdict: Verdict::StillOpen };
            let found = take_proofs(&mut assessment, &[checked], Timestamp::UNIX_EPOCH);
            let expected = contradicts.then_some(Contradiction { node, address, port });
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{said}");
            assert_eq!(assessment.findings[0].status, FindingStatus::Failed);
        }
    }

    #[test]
    fn only_a_proof_resolves() {
        let closed = Verdict::Closed(Evidence::Refusals { protocol: Protocol::Tcp, attempts: 2, source_ports: 2 });
        let unproven = Verdict::Unproven(Unproven::NoControlPort);
        for (verdict, status, findings) in [
            (closed, FindingStatus::Resolved, 1),
            (unproven, FindingStatus::Enforced, 1),
            (Verdict::StillOpen, FindingStatus::Failed, 1),
        ] {
            let mut assessment = assessment(vec![finding("n1", V4, "8080/tcp", FindingStatus::Enforced)]);
            let checked = |address: &str, verdict| Checked {
                node: "n1".parse().unwrap(),
                address: address.parse().unwrap(),
                port: "8080/tcp".parse().unwrap(),
                verdict,
            };
            take_proofs(&mut assessment, &[checked(V4, verdict)], Timestamp::UNIX_EPOCH);
            assert_eq!((assessment.findings[0].status, assessment.findings.len()), (status, findings));
            take_proofs(&mut assessment, &[checked("2001:db8::11", Verdict::StillOpen)], Timestamp::UNIX_EPOCH);
            assert_eq!(
                assessment.findings.last().map(|f| (f.status, f.address)),
                Some((FindingStatus::Open, "2001:db8::11".parse().unwrap()))
            );
        }
    }
}
