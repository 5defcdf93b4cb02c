//! `--output json` and `jsonl`: schema deadlight.scan/v1.

use std::cell::Cell;
use std::io::{self, Write};
use std::net::IpAddr;
use std::num::NonZeroU16;

use deadlight_shared::text::printable;
use deadlight_shared::{Evidence, Finding, Name, Observation, PortSet, PortState, Protocol};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::Scan;
use crate::assess::Missing;

/// The schema's name and version.
pub(in crate::cli) const SCHEMA: &str = "deadlight.scan/v1";
/// Longest text of a system that is shown.
const SHOWN: usize = 300;

/// What a scan looked at: each of the ports at each of the addresses. A target of it that a complete
/// scan does not list was closed or filtered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Scanned {
    pub(in crate::cli) ports: PortSet,
    pub(in crate::cli) nodes: Vec<ScannedNode>,
}

/// One node of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct ScannedNode {
    pub(in crate::cli) node: Name,
    pub(in crate::cli) addresses: Vec<IpAddr>,
}

/// One indented object.
pub(super) fn write(scan: &Scan, out: &mut impl Write) -> io::Result<()> {
    let observations = Stream::new(scan.observations());
    serde_json::to_writer_pretty(&mut *out, &document(scan, Some(observations)))?;
    writeln!(out)
}

/// One observation a line, then the same object without them.
pub(super) fn write_lines(scan: &Scan, out: &mut impl Write) -> io::Result<()> {
    for observation in scan.observations() {
        serde_json::to_writer(&mut *out, &observation)?;
        writeln!(out)?;
    }
    serde_json::to_writer(&mut *out, &document(scan, None::<Stream<std::iter::Empty<Shown>>>))?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document<'a, O> {
    schema: &'static str,
    vantage: &'a Name,
    started: Timestamp,
    finished: Timestamp,
    scanned: &'a Scanned,
    #[serde(skip_serializing_if = "Option::is_none")]
    observations: Option<O>,
    findings: &'a [Finding],
    missing: &'a [Missing],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    liars: Vec<Liar>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unresolved: Vec<Nowhere<'a>>,
    summary: Summary,
}

/// An address that answers where nothing can be; its open ports are no findings.
#[derive(Serialize)]
struct Liar {
    address: IpAddr,
    open: usize,
}

/// A name without an address.
#[derive(Serialize)]
struct Nowhere<'a> {
    target: &'a Name,
    state: PortState,
    reason: String,
}

#[derive(Serialize)]
struct Shown {
    node: Name,
    address: IpAddr,
    port: NonZeroU16,
    protocol: Protocol,
    state: PortState,
    evidence: Evidence,
    attempts: u32,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
}

#[derive(Serialize)]
struct Summary {
    targets: u64,
    open: u64,
    closed: u64,
    filtered: u64,
    #[serde(rename = "open|filtered", skip_serializing_if = "is_zero")]
    open_filtered: u64,
    unknown: u64,
    probes_sent: u64,
    probes_per_second: f64,
    #[serde(skip_serializing_if = "is_zero")]
    frames_dropped: u64,
    complete: bool,
}

/// An iterator written as a list, without the list ever being in memory.
pub(super) struct Stream<I>(Cell<Option<I>>);

impl<I> Stream<I> {
    pub(super) fn new(items: I) -> Self {
        Self(Cell::new(Some(items)))
    }
}

impl<I: Iterator<Item: Serialize>> Serialize for Stream<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.take().into_iter().flatten())
    }
}

impl Scan {
    fn observations(&self) -> impl Iterator<Item = Shown> {
        let seen = self.sweep.observations.iter().cloned();
        let unasked = self.sweep.unasked.iter().flat_map(|unasked| unasked.observations());
        seen.chain(unasked).map(|Observation { node, address, port, state, evidence, attempts, service }| Shown {
            allowed: self.may_be_open(&node, port),
            node,
            address,
            port: port.number,
            protocol: port.protocol,
            state,
            evidence,
            attempts,
            service,
        })
    }
}

fn document<O>(scan: &Scan, observations: Option<O>) -> Document<'_, O> {
    let tally = scan.sweep.tally;
    Document {
        schema: SCHEMA,
        vantage: &scan.vantage,
        started: scan.sweep.started,
        finished: scan.sweep.finished,
        scanned: &scan.scanned,
        observations,
        findings: &scan.assessment.findings,
        missing: &scan.assessment.missing,
        liars: scan.sweep.liars.iter().map(|(&address, &open)| Liar { address, open }).collect(),
        unresolved: scan.unresolved.iter().map(nowhere).collect(),
        summary: Summary {
            targets: tally.targets,
            open: tally.open,
            closed: tally.closed,
            filtered: tally.filtered,
            open_filtered: tally.open_filtered,
            unknown: tally.unknown,
            probes_sent: tally.probes_sent,
            probes_per_second: scan.speed(),
            frames_dropped: tally.dropped,
            complete: scan.is_complete(),
        },
    }
}

fn nowhere(unresolved: &crate::sweep::Unresolved) -> Nowhere<'_> {
    Nowhere { target: &unresolved.target, state: PortState::Unknown, reason: printable(&unresolved.reason(), SHOWN) }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::super::fixture::scan;
    use super::*;

    const GOLDEN: &str = include_str!("golden.json");

    #[test]
    fn the_document_is_the_golden_one() {
        let mut written = Vec::new();
        write(&scan(), &mut written).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), GOLDEN);
    }

    #[test]
    fn the_lines_say_the_same() {
        let mut written = Vec::new();
        write_lines(&scan(), &mut written).unwrap();
        let text = String::from_utf8(written).unwrap();
        let mut lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut document = lines.pop().unwrap();
        document["observations"] = lines.into();
        assert_eq!(document, serde_json::from_str::<serde_json::Value>(GOLDEN).unwrap());
    }
}
