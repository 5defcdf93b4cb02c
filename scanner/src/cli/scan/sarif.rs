//! `--output sarif`: SARIF 2.1.0, for code scanning.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;

use deadlight_shared::text::printable;
use deadlight_shared::{Evidence, Finding, Name, Observation, Port, PortState};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::counted;
use super::Scan;
use super::document::Stream;

/// Longest text of a system that is shown.
const SHOWN: usize = 300;

/// What a result is about.
struct Rule {
    id: &'static str,
    level: &'static str,
    title: &'static str,
    help: &'static str,
}

const UNEXPECTED: usize = 0;
const MISSING: usize = 1;
const NOT_ASKED: usize = 2;

const RULES: [Rule; 3] = [
    Rule {
        id: "unexpected-open-port",
        level: "error",
        title: "A port is open and no allowlist entry covers it",
        help: "Close the port, or add an allowlist entry with an owner and a reason.",
    },
    Rule {
        id: "expected-port-missing",
        level: "warning",
        title: "A port that the allowlist expects open is closed or filtered at every address of its node",
        help: "Start the service again, or remove the allowlist entry.",
    },
    // A result, and not a notification alone: most readers show results only, and a blind scan without
    // any would look clean. SARIF's kind `open` would demand level `none`, which code scanning lacks.
    Rule {
        id: "not-asked",
        level: "note",
        title: "Something could not be asked or believed, so nothing is known about it",
        help: "Repair the way from the scanner to the target, then scan again.",
    },
];

pub(super) fn write(scan: &Scan, out: &mut impl Write) -> io::Result<()> {
    let doubts = doubts(scan);
    let observations = scan.sweep.observations.iter();
    let seen: Seen<'_> = observations.map(|seen| ((&seen.node, seen.address, seen.port), &seen.evidence)).collect();
    let unexpected = scan.assessment.findings.iter().map(|finding| unexpected(&seen, finding));
    let missing = scan.assessment.missing.iter().map(|missing| {
        let text = format!("{} of node {} is allowed and not open", missing.port, missing.node);
        let place = format!("{}/{}", missing.node, missing.port);
        result(MISSING, &text, &place, &place)
    });
    let not_asked = doubts.iter().map(|doubt| result(NOT_ASKED, &doubt.text, &doubt.place, &doubt.place));
    let run = Run {
        tool: json!({
            "driver": {
                "name": env!("CARGO_PKG_NAME"),
                "version": env!("CARGO_PKG_VERSION"),
                "rules": RULES.iter().map(rule).collect::<Vec<_>>(),
            },
        }),
        // Uploads of one vantage point replace each other, not those of another.
        automation_details: json!({ "id": format!("{}/{}/", env!("CARGO_PKG_NAME"), scan.vantage) }),
        invocations: json!([{
            "executionSuccessful": scan.is_complete(),
            "startTimeUtc": utc(scan.sweep.started),
            "endTimeUtc": utc(scan.sweep.finished),
            "toolExecutionNotifications": doubts.iter().map(notification).collect::<Vec<_>>(),
        }]),
        results: Stream::new(unexpected.chain(missing).chain(not_asked)),
    };
    let log = Log { schema: "https://json.schemastore.org/sarif-2.1.0.json", version: "2.1.0", runs: [run] };
    serde_json::to_writer_pretty(&mut *out, &log)?;
    writeln!(out)
}

#[derive(Serialize)]
struct Log<R> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: [Run<R>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Run<R> {
    tool: Value,
    automation_details: Value,
    invocations: Value,
    results: R,
}

fn rule(rule: &Rule) -> Value {
    json!({
        "id": rule.id,
        "shortDescription": { "text": rule.title },
        "fullDescription": { "text": format!("{}.", rule.title) },
        "help": { "text": rule.help },
        "defaultConfiguration": { "level": rule.level },
    })
}

type Seen<'a> = BTreeMap<(&'a Name, IpAddr, Port), &'a Evidence>;

fn unexpected(seen: &Seen<'_>, finding: &Finding) -> Value {
    let (Finding { id, node, address, service, .. }, port) = (finding, finding.port());
    let evidence = seen.get(&(node, *address, port)).copied();
    let behind = service.as_ref().map(|service| format!("; behind it: {}", printable(service, SHOWN)));
    let (by, behind) = (by(evidence), behind.unwrap_or_default());
    let text = format!("{port} at {address} (node {node}) is open and not allowed{by}{behind}");
    result(UNEXPECTED, &text, &format!("{node}/{address}/{port}"), id.as_str())
}

fn by(evidence: Option<&Evidence>) -> String {
    evidence.map(|evidence| format!(": {}", printable(&evidence.to_string(), SHOWN))).unwrap_or_default()
}

/// `place` is a relative path, which code scanning demands: it refuses any scheme but `file`, and a
/// location without a line. A node's name comes first, so no colon of an address can look like a scheme.
fn result(rule: usize, text: &str, place: &str, fingerprint: &str) -> Value {
    json!({
        "ruleId": RULES[rule].id,
        "ruleIndex": rule,
        "level": RULES[rule].level,
        "message": { "text": message(text) },
        "locations": [{
            "physicalLocation": { "artifactLocation": { "uri": place }, "region": { "startLine": 1 } },
            "logicalLocations": [{ "fullyQualifiedName": place, "kind": "resource" }],
        }],
        // The first is the only one that GitHub reads; it would make one from a line of the file.
        "partialFingerprints": { "primaryLocationLineHash": fingerprint, "deadlightTarget/v1": fingerprint },
    })
}

fn notification(doubt: &Doubt) -> Value {
    json!({
        "level": "error",
        "message": { "text": message(&doubt.text) },
        "associatedRule": { "id": RULES[NOT_ASKED].id, "index": NOT_ASKED },
    })
}

/// Something that is not known.
struct Doubt {
    place: String,
    text: String,
}

fn doubts(scan: &Scan) -> Vec<Doubt> {
    let blind = scan.is_blind().then(|| Doubt {
        place: scan.vantage.to_string(),
        text: format!("No port of any target answered or refused vantage point {}", scan.vantage),
    });
    let unasked = scan.sweep.unasked.iter().map(|unasked| {
        let (ports, why) = (counted(unasked.ports.len(), "port"), printable(&unasked.why(), SHOWN));
        Doubt {
            place: format!("{}/{}", unasked.node, unasked.address),
            text: format!("{} (node {}, {ports}) {why}", unasked.address, unasked.node),
        }
    });
    let unknown = scan.sweep.observations.iter().filter(|seen| seen.state == PortState::Unknown).map(|seen| {
        let Observation { node, address, port, evidence, .. } = seen;
        Doubt {
            place: format!("{node}/{address}/{port}"),
            text: format!("{port} at {address} (node {node}) is unknown{}", by(Some(evidence))),
        }
    });
    let unresolved = scan.unresolved.iter().map(|unresolved| Doubt {
        place: unresolved.target.to_string(),
        text: format!("{} could not be asked: {}", unresolved.target, printable(&unresolved.reason(), SHOWN)),
    });
    let interrupted = scan
        .sweep
        .interrupted
        .then(|| Doubt { place: scan.vantage.to_string(), text: "The scan was interrupted before its end".to_owned() });
    let addresses = scan.scanned.nodes.iter().flat_map(|node| node.addresses.iter().map(move |a| (&node.node, a)));
    let liars = addresses.filter_map(|(node, address)| {
        let ports = counted(*scan.sweep.liars.get(address)?, "port");
        Some(Doubt {
            place: format!("{node}/{address}"),
            text: format!("{address} (node {node}) answered on {ports}: something before it answers everything"),
        })
    });
    blind.into_iter().chain(interrupted).chain(liars).chain(unasked).chain(unknown).chain(unresolved).collect()
}

/// Plain text as SARIF wants it (3.11): braces are placeholders and brackets are links otherwise.
fn message(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('[', "\\[").replace(']', "\\]");
    text.replace('{', "{{").replace('}', "}}")
}

fn utc(time: Timestamp) -> String {
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::scan;
    use super::*;

    fn log(scan: &Scan) -> Value {
        let mut written = Vec::new();
        write(scan, &mut written).unwrap();
        serde_json::from_slice(&written).unwrap()
    }

    #[test]
    fn the_log_is_the_golden_one() {
        let written = log(&scan());
        let golden = include_str!("golden.sarif").replace("VERSION", env!("CARGO_PKG_VERSION"));
        assert_eq!(written, serde_json::from_str::<Value>(&golden).unwrap(), "{written:#}");
    }

    #[test]
    fn a_blind_scan_is_no_clean_one() {
        let mut scan = scan();
        scan.sweep.heard.clear();
        scan.sweep.unasked.clear();
        scan.sweep.observations.clear();
        scan.unresolved.clear();
        scan.sweep.tally.unknown = 0;
        let run = &log(&scan)["runs"][0];
        assert_eq!(run["invocations"][0]["executionSuccessful"], false);
        assert_eq!(run["invocations"][0]["toolExecutionNotifications"].as_array().unwrap().len(), 1);
        let rules: Vec<_> = run["results"].as_array().unwrap().iter().map(|result| &result["ruleId"]).collect();
        assert!(rules.contains(&&json!("not-asked")), "{run:#}");
    }

    #[test]
    fn what_is_behind_a_port_and_who_lies_is_said() {
        let mut scan = scan();
        scan.assessment.findings[0].service = Some("HTTP 200, title \x1bcAdvisor".to_owned());
        scan.sweep.liars.insert("198.51.100.11".parse().unwrap(), 60);
        scan.sweep.interrupted = true;
        let log = log(&scan).to_string();
        for wanted in ["; behind it: HTTP 200, title", "answered on 60 ports", "interrupted"] {
            assert!(log.contains(wanted), "no {wanted:?} in {log}");
        }
    }

    #[test]
    fn hostile_text_stays_text() {
        let mut scan = scan();
        scan.sweep.unasked[0].reason = "\x1b[31m [click](https://evil.invalid) {0}".to_owned();
        let log = log(&scan);
        let text = log["runs"][0]["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"].as_str();
        let wanted = r"\\u{{1b}}\[31m \[click\](https://evil.invalid) {{0}}";
        assert!(text.unwrap().ends_with(wanted), "{text:?}");
    }
}
