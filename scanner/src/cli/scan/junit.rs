//! `--output junit`: JUnit XML, for the test reports of CI systems.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::IpAddr;

use deadlight_shared::text::printable;
use deadlight_shared::{Name, Observation, Port, PortState};
use quick_xml::events::BytesText;
use quick_xml::writer::Writer;

use super::super::counted;
use super::{Scan, ScannedNode};
use crate::sweep::Unasked;

/// Longest text of a system that is shown.
const SHOWN: usize = 300;

/// Writes one suite for each node and for each name without an address.
pub(super) fn write(scan: &Scan, out: &mut impl Write) -> io::Result<()> {
    let suites = suites(scan);
    let mut xml = Writer::new_with_indent(&mut *out, b' ', 2);
    let all: Counts = suites.iter().flat_map(|suite| &suite.cases).collect();
    writeln!(xml.get_mut(), r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    let time = format!("{:.3}", scan.sweep.duration.as_secs_f64());
    let root = xml.create_element("testsuites").with_attribute(("name", env!("CARGO_PKG_NAME")));
    let root = root.with_attributes(all.attributes()).with_attribute(("time", time.as_str()));
    root.write_inner_content(|xml| suites.iter().try_for_each(|suite| suite.write(scan, xml)))?;
    writeln!(out)
}

struct Suite {
    name: Name,
    cases: Vec<Case>,
}

struct Case {
    /// An address, or a name that has none.
    class: String,
    name: String,
    verdict: Verdict,
}

enum Verdict {
    Passed,
    /// With the kind of failure and what was seen.
    Failed(&'static str, String),
    /// Asked, and the answer settles nothing.
    Skipped(String),
    /// Not known: an error, because a skipped test would leave an incomplete scan green.
    Unknown(String),
}

fn suites(scan: &Scan) -> Vec<Suite> {
    let mut seen: BTreeMap<IpAddr, Vec<&Observation>> = BTreeMap::new();
    let believed = |seen: &&Observation| seen.state != PortState::Open || !scan.sweep.liars.contains_key(&seen.address);
    for observation in scan.sweep.observations.iter().filter(believed) {
        seen.entry(observation.address).or_default().push(observation);
    }
    let mut unasked: BTreeMap<IpAddr, Vec<&Unasked>> = BTreeMap::new();
    for each in &scan.sweep.unasked {
        unasked.entry(each.address).or_default().push(each);
    }
    let missing: Missing<'_> = scan.assessment.missing.iter().map(|missing| (&missing.node, missing.port)).collect();
    let cases = |address: &IpAddr| {
        let seen = seen.get(address).into_iter().flatten().map(|seen| observed(scan, &missing, seen));
        seen.chain([rest(scan, *address, unasked.get(address).map(Vec::as_slice))]).collect::<Vec<_>>()
    };
    let node = |ScannedNode { node, addresses }: &ScannedNode| Suite {
        name: node.clone(),
        cases: addresses.iter().flat_map(cases).collect(),
    };
    let unresolved = scan.unresolved.iter().map(|unresolved| Suite {
        name: unresolved.target.clone(),
        cases: vec![Case {
            class: unresolved.target.to_string(),
            name: "has an address".to_owned(),
            verdict: Verdict::Unknown(unresolved.reason()),
        }],
    });
    scan.scanned.nodes.iter().map(node).chain(unresolved).collect()
}

type Missing<'a> = BTreeSet<(&'a Name, Port)>;

/// What is asked of one listed port: an allowed one should be open, every other one should not.
fn observed(scan: &Scan, missing: &Missing<'_>, seen: &Observation) -> Case {
    let Observation { node, address, port, state, evidence, service, .. } = seen;
    let allowed = scan.may_be_open(node, *port);
    let behind = service.as_ref().map(|service| format!("; behind it: {service}")).unwrap_or_default();
    let text = format!("{state}: {evidence}{behind}");
    let verdict = match (state, allowed) {
        (PortState::Open, true) | (PortState::Closed | PortState::Filtered, false) => Verdict::Passed,
        (PortState::Open, false) => Verdict::Failed("unexpected-open-port", text),
        (PortState::Closed | PortState::Filtered, true) if missing.contains(&(node, *port)) => {
            Verdict::Failed("expected-port-missing", text)
        }
        (PortState::Closed | PortState::Filtered, true) => {
            Verdict::Skipped(format!("{text}; another address of the node may have it open"))
        }
        (PortState::OpenFiltered, _) => Verdict::Skipped(text),
        (PortState::Unknown, _) => Verdict::Unknown(text),
    };
    let name = format!("{port} is {}", if allowed { "open" } else { "not open" });
    Case { class: address.to_string(), name, verdict }
}

/// What is asked of all ports of an address that are not listed.
fn rest(scan: &Scan, address: IpAddr, unasked: Option<&[&Unasked]>) -> Case {
    if let Some(open) = scan.sweep.liars.get(&address) {
        let said = counted(*open, "port");
        let verdict = Verdict::Unknown(format!("it answered on {said}: something before it answers everything"));
        return Case { class: address.to_string(), name: "its answers can be believed".to_owned(), verdict };
    }
    let verdict = match unasked {
        Some(unasked) => {
            let why = |unasked: &&Unasked| format!("{} {}", counted(unasked.ports.len(), "port"), unasked.why());
            Verdict::Unknown(unasked.iter().map(why).collect::<Vec<_>>().join("; "))
        }
        None if scan.is_blind() => Verdict::Unknown("no port of any target answered or refused".to_owned()),
        None => Verdict::Passed,
    };
    Case { class: address.to_string(), name: "no other port is open".to_owned(), verdict }
}

impl Suite {
    fn write<W: Write>(&self, scan: &Scan, xml: &mut Writer<W>) -> io::Result<()> {
        let counts: Counts = self.cases.iter().collect();
        let started = format!("{:.0}", scan.sweep.started);
        let suite = xml.create_element("testsuite").with_attribute(("name", self.name.as_str()));
        let suite = suite.with_attributes(counts.attributes());
        let suite = suite.with_attribute(("timestamp", started.as_str()));
        suite.write_inner_content(|xml| self.cases.iter().try_for_each(|case| case.write(xml)))?;
        Ok(())
    }
}

impl Case {
    fn write<W: Write>(&self, xml: &mut Writer<W>) -> io::Result<()> {
        let case = xml.create_element("testcase");
        let case = case.with_attributes([("classname", self.class.as_str()), ("name", self.name.as_str())]);
        let (element, kind, text) = match &self.verdict {
            Verdict::Passed => return case.write_empty().map(drop),
            Verdict::Failed(kind, text) => ("failure", Some(*kind), text),
            Verdict::Unknown(text) => ("error", Some("not-asked"), text),
            Verdict::Skipped(text) => ("skipped", None, text),
        };
        let text = safe(text);
        case.write_inner_content(|xml| {
            let why = xml.create_element(element).with_attributes(kind.map(|kind| ("type", kind)));
            why.with_attribute(("message", text.as_str())).write_text_content(BytesText::new(&text))?;
            Ok(())
        })?;
        Ok(())
    }
}

#[derive(Default)]
struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
}

impl<'a> FromIterator<&'a Case> for Counts {
    fn from_iter<I: IntoIterator<Item = &'a Case>>(cases: I) -> Self {
        let mut counts = Self::default();
        for case in cases {
            counts.tests += 1;
            match case.verdict {
                Verdict::Passed => {}
                Verdict::Failed(..) => counts.failures += 1,
                Verdict::Skipped(_) => counts.skipped += 1,
                Verdict::Unknown(_) => counts.errors += 1,
            }
        }
        counts
    }
}

impl Counts {
    fn attributes(&self) -> [(&'static str, Cow<'static, str>); 4] {
        let Self { tests, failures, errors, skipped } = self;
        [("tests", tests), ("failures", failures), ("errors", errors), ("skipped", skipped)]
            .map(|(name, count)| (name, count.to_string().into()))
    }
}

/// Text that XML 1.0 can hold: control characters are escaped, and the two others that it forbids replaced.
fn safe(text: &str) -> String {
    printable(text, SHOWN).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::scan;
    use super::*;

    fn written(scan: &Scan) -> String {
        let mut written = Vec::new();
        write(scan, &mut written).unwrap();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn the_report_is_the_golden_one() {
        assert_eq!(written(&scan()), include_str!("golden.xml"));
    }

    #[test]
    fn a_clean_scan_has_a_passed_test_and_a_blind_one_an_error() {
        let mut scan = scan();
        scan.sweep.unasked.clear();
        scan.sweep.observations.clear();
        scan.unresolved.clear();
        let clean = written(&scan);
        assert!(clean.contains(r#"tests="2" failures="0" errors="0" skipped="0""#), "{clean}");
        scan.sweep.heard.clear();
        let blind = written(&scan);
        assert!(blind.contains(r#"tests="2" failures="0" errors="2" skipped="0""#), "{blind}");
    }

    #[test]
    fn what_a_liar_says_is_one_error() {
        let mut scan = scan();
        scan.sweep.liars.insert("198.51.100.11".parse().unwrap(), 60);
        let text = written(&scan);
        assert!(text.contains("it answered on 60 ports") && !text.contains("unexpected-open-port"), "{text}");
    }

    #[test]
    fn what_is_behind_a_port_is_said() {
        let mut scan = scan();
        scan.sweep.observations[2].service = Some("HTTP 200 <b>\x1b".to_owned());
        let text = written(&scan);
        assert!(text.contains("open: syn-ack; behind it: HTTP 200 &lt;b&gt;\\u{1b}"), "{text}");
    }

    #[test]
    fn a_port_that_only_one_address_lacks_is_not_missing() {
        let mut scan = scan();
        scan.assessment.missing.clear();
        let text = written(&scan);
        assert!(text.contains("<skipped message=\"filtered: silence; another address"), "{text}");
    }

    #[test]
    fn hostile_text_stays_text() {
        let mut scan = scan();
        scan.sweep.unasked[0].reason = "\x1b[31m\0\u{ffff}\"'<failure>&]]>".to_owned();
        let text = written(&scan);
        let mut reader = quick_xml::Reader::from_str(&text);
        let mut failures = 0;
        loop {
            match reader.read_event().unwrap() {
                quick_xml::events::Event::Eof => break,
                quick_xml::events::Event::Start(element) => failures += usize::from(element.name().0 == "failure"),
                _ => {}
            }
        }
        assert_eq!(failures, 2, "{text}");
        assert!(text.contains(r"\u{1b}[31m\u{0}"), "{text}");
        assert!(!text.contains(|c: char| c == '\u{ffff}' || (c.is_control() && c != '\n')), "{text:?}");
    }
}
