//! What strangers say, on its way to people and programs.

use std::path::Path;
use std::sync::LazyLock;

use deadlight_scanner::cli::fuzzing::{self, Printed};
use deadlight_scanner::config::{Config, TEMPLATE};
use deadlight_shared::wire::OrderMark;
use jiff::civil::date;
use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::Value;

use crate::text::assert_lines;

/// Between the two texts of [`sinks`]; no text has it.
const SEPARATOR: u8 = 0xff;
const STATUSES: [u16; 7] = [200, 302, 400, 403, 409, 422, 500];
/// Longer lines are somebody's attempt to flood.
const LONGEST: usize = 16 << 10;

/// Few ports, because each is a line.
static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let config = Config::parse(TEMPLATE, Path::new("scanner.toml"), date(2026, 11, 25)).unwrap();
    Config { ports: "80,443/tcp".parse().unwrap(), ..config }
});

/// An answer to an order: the first byte chooses the status, the others are the body.
pub fn agent_answer(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let status = STATUSES[usize::from(*first) % STATUSES.len()];
    let node = &CONFIG.nodes[0];
    let mark = OrderMark { epoch: 3, sequence: 17 };
    let said = String::from_utf8(fuzzing::answered(status, body, node, mark)).unwrap();
    assert_lines(&said);
    assert!(said.lines().all(|line| line.len() <= LONGEST), "{said:?}");
}

/// What a service says, and what the system says of another, in everything that is printed.
pub fn sinks(bytes: &[u8]) {
    let mut texts = bytes.splitn(2, |byte| *byte == SEPARATOR);
    let (service, reason) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
    let reason = String::from_utf8_lossy(reason);
    for service in fuzzing::described(service) {
        assert!(service.chars().count() <= 256, "{service:?}");
        check(&fuzzing::printed(&service, &reason, &CONFIG), &service);
    }
}

fn check(printed: &Printed, service: &str) {
    let Printed { table, json, jsonl, sarif, junit, story } = printed;
    for bytes in [table, json, jsonl, sarif, junit, story] {
        let text = str::from_utf8(bytes).unwrap();
        assert_lines(text);
        assert!(text.lines().all(|line| line.len() <= LONGEST), "{text:?}");
    }
    let document: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(document["observations"][0]["service"], service);
    let lines: Vec<Value> = jsonl.trim_ascii_end().split(|byte| *byte == b'\n').map(parsed).collect();
    assert_eq!(lines[..lines.len() - 1], document["observations"].as_array().unwrap()[..]);
    let results = parsed(sarif)["runs"][0]["results"].as_array().unwrap().len();
    assert_eq!(cases(junit), results);
    let text = str::from_utf8(story).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("OPEN ")).count(), 1, "{text:?}");
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Test cases of a whole and well-formed document.
fn cases(junit: &[u8]) -> usize {
    let mut reader = Reader::from_reader(junit);
    reader.config_mut().check_end_names = true;
    let mut cases = 0;
    loop {
        match reader.read_event().unwrap() {
            Event::Eof => return cases,
            Event::Start(element) | Event::Empty(element) => {
                for attribute in element.attributes() {
                    attribute.unwrap();
                }
                cases += usize::from(element.name().as_ref() == "testcase");
            }
            _ => {}
        }
    }
}
