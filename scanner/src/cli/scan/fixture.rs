//! A scan in which everything that can be shown occurs, for the tests of the outputs.

use std::time::Duration;

use deadlight_shared::{Evidence, Name, Observation, PortState};
use jiff::Timestamp;

use super::Scan;
use super::document::{Scanned, ScannedNode};
use crate::assess::{Expectation, assess};
use crate::net::ResolveError;
use crate::sweep::{Sweep, Tally, Unasked, Unresolved};

pub(super) fn scan() -> Scan {
    let seen = |port: &str, state, evidence, attempts| Observation {
        node: "n1".parse().unwrap(),
        address: "198.51.100.11".parse().unwrap(),
        port: port.parse().unwrap(),
        state,
        evidence,
        attempts,
        service: None,
    };
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let sweep = Sweep {
        started: at("2026-11-23T15:00:00Z"),
        finished: at("2026-11-23T15:00:04Z"),
        observations: vec![
            seen("80/tcp", PortState::Open, Evidence::SynAck, 1),
            seen("443/tcp", PortState::Filtered, Evidence::Silence, 2),
            seen("8080/tcp", PortState::Open, Evidence::SynAck, 1),
            seen("4789/udp", PortState::OpenFiltered, Evidence::Silence, 3),
        ],
        unasked: vec![Unasked {
            node: "n1".parse().unwrap(),
            address: "2001:db8:51::11".parse().unwrap(),
            reason: "network is unreachable".to_owned(),
            ports: "80,443/tcp".parse().unwrap(),
            attempts: 0,
        }],
        liars: Default::default(),
        notes: Vec::new(),
        interrupted: false,
        settled: Default::default(),
        heard: ["198.51.100.11".parse().unwrap()].into(),
        tally: Tally {
            targets: 8,
            open: 2,
            closed: 2,
            filtered: 1,
            open_filtered: 1,
            unknown: 2,
            probes_sent: 10,
            dropped: 0,
            controls: 4,
            lost: 1,
        },
        duration: Duration::from_secs(4),
    };
    let ports = "80,443/tcp".parse().unwrap();
    let expectations = [Expectation { node: "n1".parse().unwrap(), ports }];
    let assessment = assess(&sweep, &expectations, Vec::new());
    let [Expectation { node, ports }] = expectations;
    let nowhere: Name = "nowhere.invalid".parse().unwrap();
    let error = ResolveError::Empty { name: nowhere.to_string() };
    let scanned = Scanned {
        ports: "80,443,8080/tcp,4789/udp".parse().unwrap(),
        nodes: vec![ScannedNode {
            node: "n1".parse().unwrap(),
            addresses: ["198.51.100.11", "2001:db8:51::11"].map(|address| address.parse().unwrap()).into(),
        }],
    };
    Scan {
        vantage: "office-a".parse().unwrap(),
        scanned,
        sweep,
        assessment,
        expected: [(node, ports)].into(),
        unresolved: vec![Unresolved { target: nowhere, error }],
    }
}
