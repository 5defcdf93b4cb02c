//! What strangers can make the scanner print, for `tests/fuzz`: nobody else uses it.

use std::collections::BTreeMap;
use std::time::Duration;

use deadlight_shared::wire::{OrderMark, Report};
use deadlight_shared::{Evidence, Finding, FindingId, FindingStatus, Observation, Port, PortSet, PortState};
use jiff::Timestamp;
use reqwest::StatusCode;

use super::diff::saved::Saved;
use super::scan::document::{Scanned, ScannedNode};
use super::scan::{Output, Scan, write};
use super::story::Story;
use crate::assess::{Assessment, Expectation, assess};
use crate::config::{Config, Node};
use crate::deliver;
use crate::identify::{describe, tls};
use crate::net::ResolveError;
use crate::round::Scope;
use crate::sweep::{Sweep, Tally, Unasked, Unresolved};

/// Every way to print a scan.
#[derive(Debug)]
pub struct Printed {
    /// For people, without colours.
    pub table: Vec<u8>,
    /// One object.
    pub json: Vec<u8>,
    /// An object a line.
    pub jsonl: Vec<u8>,
    /// SARIF.
    pub sarif: Vec<u8>,
    /// XML.
    pub junit: Vec<u8>,
    /// Lines of `run`.
    pub story: Vec<u8>,
}

/// What a service says of itself, by its banner, by its answer to a request, and by its certificate.
pub fn described(bytes: &[u8]) -> Vec<String> {
    let names = tls::names(&bytes.into());
    let certificate = describe::certificate(&names);
    describe::banner(bytes).into_iter().chain(describe::answer(bytes)).chain([certificate]).collect()
}

/// A scan of one node on which `service` is behind an open port, and the system gives `reason` for all else.
pub fn printed(service: &str, reason: &str, config: &Config) -> Printed {
    let scan = scan(service, reason, config);
    let print = |output| {
        let mut text = Vec::new();
        write(&scan, output, &mut anstream::StripStream::new(&mut text)).map(|()| text).unwrap_or_default()
    };
    let plain = |output| {
        let mut text = Vec::new();
        write(&scan, output, &mut text).map(|()| text).unwrap_or_default()
    };
    let story = told(|story| story.sweep(config, &scan.sweep, &scan.assessment));
    Printed {
        table: print(Output::Table),
        json: plain(Output::Json),
        jsonl: plain(Output::Jsonl),
        sarif: plain(Output::Sarif),
        junit: plain(Output::Junit),
        story,
    }
}

/// The lines about an agent's answer to an order with `mark` that names one port.
pub fn answered(status: u16, body: &[u8], node: &Node, mark: OrderMark) -> Vec<u8> {
    let Ok(status) = StatusCode::from_u16(status) else { return Vec::new() };
    let report = deliver::succeeded(status, body)
        .and_then(|()| deliver::read(body))
        .and_then(|report: Report| deliver::accept(report, &node.name, mark));
    match report {
        Err(error) => told(|story| story.no_report(node, &error)),
        Ok(report) => {
            let findings = report.outcomes.iter().map(|outcome| Finding {
                id: outcome.finding.clone(),
                node: node.name.clone(),
                address: [198, 51, 100, 11].into(),
                port: outcome.port,
                protocol: outcome.protocol,
                status: FindingStatus::Open,
                first_seen: Timestamp::UNIX_EPOCH,
                service: None,
            });
            let known = Assessment { findings: findings.collect(), exposed: Default::default(), missing: Vec::new() };
            told(|story| story.report(&report, &known))
        }
    }
}

/// Why `bytes` are no saved scan.
pub fn saved(bytes: &[u8]) -> Result<(), String> {
    Saved::parse(bytes).map(drop).map_err(|error| error.to_string())
}

fn told(tell: impl FnOnce(&mut Story<anstream::StripStream<&mut Vec<u8>>>)) -> Vec<u8> {
    let mut text = Vec::new();
    tell(&mut Story::new(Scope::Full, anstream::StripStream::new(&mut text)));
    text
}

fn scan(service: &str, reason: &str, config: &Config) -> Scan {
    let Some(node) = config.nodes.first() else { unreachable!("a configuration without nodes is refused") };
    let (name, address) = (&node.name, node.addresses[0]);
    let seen = |port: Port, state, evidence, service| Observation {
        node: name.clone(),
        address,
        port,
        state,
        evidence,
        attempts: 1,
        service,
    };
    let service = (!service.is_empty()).then(|| service.to_owned());
    let sweep = Sweep {
        started: Timestamp::UNIX_EPOCH,
        finished: Timestamp::UNIX_EPOCH,
        observations: [8080, 8081, 8082]
            .into_iter()
            .filter_map(|number| Port::new(deadlight_shared::Protocol::Tcp, number))
            .zip([
                (PortState::Open, Evidence::SynAck, service),
                (PortState::Unknown, Evidence::Inconclusive(reason.to_owned()), None),
                (PortState::Unknown, Evidence::NotAsked(reason.to_owned()), None),
            ])
            .map(|(port, (state, evidence, service))| seen(port, state, evidence, service))
            .collect(),
        unasked: vec![Unasked {
            node: name.clone(),
            address,
            reason: reason.to_owned(),
            ports: config.ports.clone(),
            attempts: 0,
        }],
        heard: [address].into(),
        liars: BTreeMap::new(),
        notes: vec![reason.to_owned()],
        interrupted: false,
        settled: BTreeMap::new(),
        tally: Tally::default(),
        duration: Duration::from_secs(1),
    };
    let expectations = [Expectation { node: name.clone(), ports: PortSet::default() }];
    let assessment = assess(&sweep, &expectations, Vec::new());
    debug_assert_eq!(assessment.exposed.iter().map(FindingId::as_str).count(), 1);
    let error = ResolveError::Empty { name: reason.to_owned() };
    Scan {
        vantage: config.vantage.clone(),
        scanned: Scanned {
            ports: config.ports.clone(),
            nodes: vec![ScannedNode { node: name.clone(), addresses: vec![address] }],
        },
        sweep,
        assessment,
        expected: BTreeMap::new(),
        unresolved: vec![Unresolved { target: name.clone(), error }],
    }
}
