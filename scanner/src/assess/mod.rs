//! From what was seen to what is wrong: observations and allowlist make findings. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use deadlight_shared::{Finding, FindingId, FindingStatus, Name, Observation, Port, PortSet, PortState};
use jiff::Timestamp;
use serde::Serialize;

use crate::sweep::Sweep;

/// A node as it is judged.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// The node.
    pub node: Name,
    /// Ports that may be open on it.
    pub ports: PortSet,
}

/// A port that should be open and is not, at any address of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The node.
    pub node: Name,
    /// Its port.
    #[serde(flatten, serialize_with = "number_and_protocol")]
    pub port: Port,
}

/// What a sweep means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// Every finding that is known now, those of earlier sweeps first.
    pub findings: Vec<Finding>,
    /// The findings whose port is open in this sweep.
    pub exposed: BTreeSet<FindingId>,
    /// What the allowlist expects open and is not.
    pub missing: Vec<Missing>,
}

/// Judges what `sweep` saw; `known` are the findings of earlier sweeps. What an address that answers
/// everywhere says is no exposure.
pub fn assess(sweep: &Sweep, expectations: &[Expectation], known: Vec<Finding>) -> Assessment {
    let observations = &sweep.observations;
    let expected: BTreeMap<&Name, &PortSet> = expectations.iter().map(|e| (&e.node, &e.ports)).collect();
    let may_be_open = |node: &Name, port| expected.get(node).is_some_and(|ports| ports.contains(port));
    let mut findings = known;
    let mut exposed = BTreeSet::new();
    for finding in &mut findings {
        if may_be_open(&finding.node, finding.port()) {
            finding.status = FindingStatus::Accepted;
        }
    }
    let mut position: BTreeMap<FindingId, usize> = findings.iter().map(|f| f.id.clone()).zip(0..).collect();
    let believed = |seen: &Observation| seen.state == PortState::Open && !sweep.liars.contains_key(&seen.address);
    let open = |seen: &&Observation| believed(seen) && !may_be_open(&seen.node, seen.port);
    for seen in observations.iter().filter(open) {
        let id = FindingId::of(&seen.node, seen.address, seen.port);
        match position.get(&id) {
            Some(&index) => findings[index].status = seen_again(findings[index].status),
            None => {
                position.insert(id.clone(), findings.len());
                findings.push(first_seen(&id, seen.node.clone(), seen.address, seen.port, sweep.started));
            }
        }
        if let (Some(&index), Some(service)) = (position.get(&id), &seen.service) {
            findings[index].service = Some(service.clone());
        }
        exposed.insert(id);
    }
    Assessment { findings, exposed, missing: missing(observations, expectations) }
}

/// A finding that nobody knew before.
pub fn first_seen(id: &FindingId, node: Name, address: IpAddr, port: Port, now: Timestamp) -> Finding {
    let Port { protocol, number } = port;
    let (id, status) = (id.clone(), FindingStatus::Open);
    Finding { id, node, address, port: number, protocol, status, first_seen: now, service: None }
}

fn seen_again(status: FindingStatus) -> FindingStatus {
    match status {
        FindingStatus::Resolved => FindingStatus::Reopened,
        FindingStatus::Accepted => FindingStatus::Open,
        other => other,
    }
}

/// Expected ports that were seen closed or filtered at every address of their node. A port that
/// could not be asked, or a silent UDP port, is not known to be missing.
fn missing(observations: &[Observation], expectations: &[Expectation]) -> Vec<Missing> {
    let mut shut: BTreeMap<(&Name, Port), bool> = BTreeMap::new();
    for seen in observations {
        let shut_here = matches!(seen.state, PortState::Closed | PortState::Filtered);
        shut.entry((&seen.node, seen.port)).and_modify(|all| *all &= shut_here).or_insert(shut_here);
    }
    let is_missing = |node: &Name, port: &Port| shut.get(&(node, *port)).copied().unwrap_or(false);
    let missing = |e: &Expectation| -> Vec<Missing> {
        let ports = e.ports.iter().filter(|port| is_missing(&e.node, port));
        ports.map(|port| Missing { node: e.node.clone(), port }).collect()
    };
    expectations.iter().flat_map(missing).collect()
}

/// A port as two JSON fields.
fn number_and_protocol<S: serde::Serializer>(port: &Port, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap as _;
    let mut fields = serializer.serialize_map(Some(2))?;
    fields.serialize_entry("port", &port.number)?;
    fields.serialize_entry("protocol", &port.protocol)?;
    fields.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadlight_shared::Evidence;

    fn seen(node: &str, address: &str, port: &str, state: PortState) -> Observation {
        Observation {
            node: node.parse().unwrap(),
            address: address.parse().unwrap(),
            port: port.parse().unwrap(),
            state,
            evidence: Evidence::SynAck,
            attempts: 1,
            service: None,
        }
    }

    fn assess(
        observations: &[Observation],
        expectations: &[Expectation],
        known: Vec<Finding>,
        now: Timestamp,
    ) -> Assessment {
        super::assess(&sweep(observations, now, &[]), expectations, known)
    }

    fn sweep(observations: &[Observation], started: Timestamp, liars: &[&str]) -> Sweep {
        Sweep {
            started,
            finished: started,
            observations: observations.to_vec(),
            unasked: Vec::new(),
            heard: BTreeSet::new(),
            liars: liars.iter().map(|address| (address.parse().unwrap(), 60)).collect(),
            notes: Vec::new(),
            interrupted: false,
            settled: Default::default(),
            tally: Default::default(),
            duration: Default::default(),
        }
    }

    #[test]
    fn what_a_liar_says_is_no_exposure() {
        let observations = [seen("n1", V4, "8080/tcp", Open), seen("n1", V6, "8080/tcp", Open)];
        let found = super::assess(&sweep(&observations, at(1), &[V4]), &[], Vec::new());
        let addresses: Vec<_> = found.findings.iter().map(|finding| finding.address.to_string()).collect();
        assert_eq!((addresses, found.exposed.len()), (vec![V6.to_owned()], 1));
    }

    #[test]
    fn what_is_behind_a_port_stays_known() {
        let mut open = seen("n1", V4, "8080/tcp", Open);
        let first = assess(std::slice::from_ref(&open), &[], Vec::new(), at(1)).findings;
        assert_eq!(first[0].service, None);
        open.service = Some("HTTP 200, title cAdvisor".to_owned());
        let then = assess(std::slice::from_ref(&open), &[], first, at(2)).findings;
        open.service = None;
        let last = assess(&[open], &[], then, at(3)).findings;
        assert_eq!(last[0].service.as_deref(), Some("HTTP 200, title cAdvisor"));
    }

    fn expect(node: &str, ports: &str) -> Expectation {
        Expectation { node: node.parse().unwrap(), ports: ports.parse().unwrap() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const V4: &str = "192.0.2.1";
    const V6: &str = "2001:db8::1";
    use PortState::{Closed, Filtered, Open, OpenFiltered, Unknown};

    #[test]
    fn an_open_port_that_nobody_expects_is_a_finding() {
        let observations = [
            seen("n1", V4, "80/tcp", Open),
            seen("n1", V4, "8080/tcp", Open),
            seen("n1", V6, "8080/tcp", Open),
            seen("n1", V4, "4789/udp", OpenFiltered),
            seen("n1", V4, "53/udp", Open),
        ];
        let found = assess(&observations, &[expect("n1", "80/tcp")], Vec::new(), at(7));
        let targets: Vec<_> = found.findings.iter().map(|f| format!("{} {}", f.address, f.port())).collect();
        assert_eq!(targets, ["192.0.2.1 8080/tcp", "2001:db8::1 8080/tcp", "192.0.2.1 53/udp"]);
        assert!(found.findings.iter().all(|f| f.status == FindingStatus::Open && f.first_seen == at(7)));
        assert_eq!(found.exposed.len(), 3);
        assert_eq!(found.missing, []);
    }

    #[test]
    fn a_known_finding_keeps_its_date_and_is_reopened_or_accepted() {
        let open = [seen("n1", V4, "8080/tcp", Open)];
        let mut known = assess(&open, &[], Vec::new(), at(1)).findings;
        known[0].status = FindingStatus::Resolved;
        let silent = assess(&[seen("n1", V4, "8080/tcp", Filtered)], &[], known.clone(), at(2));
        assert_eq!((silent.findings[0].status, silent.exposed.len()), (FindingStatus::Resolved, 0));
        let again = assess(&open, &[], known.clone(), at(3)).findings;
        assert_eq!((again[0].status, again[0].first_seen), (FindingStatus::Reopened, at(1)));
        let allowed = assess(&open, &[expect("n1", "8080/tcp")], again, at(4));
        assert_eq!((allowed.findings[0].status, allowed.exposed.len()), (FindingStatus::Accepted, 0));
        let expired = assess(&open, &[], allowed.findings, at(5)).findings;
        assert_eq!(expired[0].status, FindingStatus::Open);
    }

    #[test]
    fn missing_is_what_is_shut_at_every_address() {
        let observations = [
            seen("n1", V4, "80/tcp", Open),
            seen("n1", V6, "80/tcp", Closed),
            seen("n1", V4, "443/tcp", Closed),
            seen("n1", V6, "443/tcp", Filtered),
            seen("n1", V4, "25/tcp", Closed),
            seen("n1", V6, "25/tcp", Unknown),
            seen("n1", V4, "53/udp", OpenFiltered),
        ];
        let found = assess(&observations, &[expect("n1", "80,443,25,22/tcp,53/udp")], Vec::new(), at(1));
        let missing: Vec<_> = found.missing.iter().map(|missing| missing.port.to_string()).collect();
        assert_eq!(missing, ["443/tcp"]);
    }
}
