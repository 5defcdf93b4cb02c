//! A saved scan as it is read back: schema deadlight.scan/v1, as `json` or `jsonl`. Fields that are not
//! needed are not looked at, so a later scanner may add some.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use deadlight_shared::text::printable;
use deadlight_shared::{Name, Port, PortState, Protocol};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::error::Category;

use super::super::scan::document::{SCHEMA, Scanned};

/// Longest text of a file that is shown.
const SHOWN: usize = 200;

/// One port of one address of one node.
pub(super) type Target = (Name, IpAddr, Port);

/// What a saved scan says.
#[derive(Debug)]
pub(in crate::cli) struct Saved {
    pub(super) vantage: Name,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
    /// Whether everything could be asked.
    pub(super) complete: bool,
    /// What it looked at; early scans do not say.
    pub(super) scanned: Option<Scanned>,
    /// Addresses whose open ports it does not believe itself.
    pub(super) liars: BTreeSet<IpAddr>,
    /// The listed targets.
    pub(super) states: BTreeMap<Target, PortState>,
}

/// Why bytes are no saved scan.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum SavedError {
    #[error("it is empty")]
    Empty,
    #[error("it is not JSON: {}", shown(.0))]
    Syntax(serde_json::Error),
    #[error("it ends too early: {}", shown(.0))]
    Truncated(serde_json::Error),
    #[error("it has no schema: it is no saved scan, or its last line is gone")]
    NoSchema,
    #[error("its schema is `{}` and not {SCHEMA}", printable(.0, SHOWN))]
    OtherSchema(String),
    #[error("its schema is {0}, and this version reads {SCHEMA} at most")]
    NewerSchema(String),
    #[error("it holds more than one scan")]
    Several,
    #[error("it says {SCHEMA}, but {}", shown(.0))]
    Malformed(serde_json::Error),
    #[error("it lists {} of {} (node {}) more than once", .0.2, .0.1, .0.0)]
    Twice(Box<Target>),
}

impl SavedError {
    /// What the reader can do.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::NewerSchema(_) => "compare them with the version of deadlight-scanner that wrote them",
            Self::Several => "compare one scan with one other: keep each in a file of its own",
            Self::Truncated(_) => "let the scan end, or save it again",
            _ => "save a scan with: deadlight-scanner scan TARGET --output json > FILE",
        }
    }
}

impl Saved {
    /// Reads one scan. Its object is the last one of the text; those before it are the observations of
    /// `jsonl`.
    pub(in crate::cli) fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        let schemas: Vec<Header> =
            serde_json::Deserializer::from_slice(bytes).into_iter().collect::<Result<_, _>>().map_err(broken)?;
        let (last, before) = schemas.split_last().ok_or(SavedError::Empty)?;
        check(last)?;
        if before.iter().any(|header| header.schema.is_some()) {
            return Err(SavedError::Several);
        }
        // One reader for all, so that an error names the line of the file.
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let lines: Result<Vec<Listed>, _> = before.iter().map(|_| Listed::deserialize(&mut reader)).collect();
        let mut listed = lines.map_err(SavedError::Malformed)?;
        let document = Document::deserialize(&mut reader).map_err(SavedError::Malformed)?;
        let Document { vantage, started, finished, scanned, observations, liars, summary } = document;
        listed.extend(observations);
        let mut states = BTreeMap::new();
        for Listed { node, address, port, protocol, state } in listed {
            let target = (node, address, Port { protocol, number: port });
            if states.insert(target.clone(), state).is_some() {
                return Err(SavedError::Twice(Box::new(target)));
            }
        }
        let liars = liars.into_iter().map(|liar| liar.address).collect();
        Ok(Self { vantage, started, finished, complete: summary.complete, scanned, liars, states })
    }
}

/// What every object of a file is first read as.
#[derive(Deserialize)]
struct Header {
    schema: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    vantage: Name,
    started: Timestamp,
    finished: Timestamp,
    scanned: Option<Scanned>,
    #[serde(default)]
    observations: Vec<Listed>,
    #[serde(default)]
    liars: Vec<Liar>,
    summary: Summary,
}

#[derive(Deserialize)]
struct Listed {
    node: Name,
    address: IpAddr,
    port: NonZeroU16,
    protocol: Protocol,
    state: PortState,
}

#[derive(Deserialize)]
struct Liar {
    address: IpAddr,
}

#[derive(Deserialize)]
struct Summary {
    complete: bool,
}

fn check(header: &Header) -> Result<(), SavedError> {
    let version = |schema: &str| schema.strip_prefix("deadlight.scan/v")?.parse::<u32>().ok();
    match header.schema.as_deref() {
        None => Err(SavedError::NoSchema),
        Some(SCHEMA) => Ok(()),
        Some(schema) => match version(schema) {
            Some(number) if Some(number) > version(SCHEMA) => Err(SavedError::NewerSchema(schema.to_owned())),
            _ => Err(SavedError::OtherSchema(schema.to_owned())),
        },
    }
}

fn broken(error: serde_json::Error) -> SavedError {
    match error.classify() {
        Category::Eof => SavedError::Truncated(error),
        Category::Syntax => SavedError::Syntax(error),
        Category::Data | Category::Io => SavedError::NoSchema,
    }
}

fn shown(error: &serde_json::Error) -> String {
    printable(&error.to_string(), SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../scan/golden.json");

    fn error(text: &str) -> String {
        Saved::parse(text.as_bytes()).unwrap_err().to_string()
    }

    /// The golden document as `jsonl`.
    fn lines() -> String {
        let mut document: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        let observations = document.as_object_mut().unwrap().remove("observations").unwrap();
        let lines = observations.as_array().unwrap().iter().chain([&document]);
        lines.map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn reads_what_scan_writes() {
        for text in [GOLDEN, &lines()] {
            let saved = Saved::parse(text.as_bytes()).unwrap();
            assert_eq!((saved.vantage.as_str(), saved.complete, saved.states.len()), ("office-a", false, 6));
            assert_eq!(saved.scanned.unwrap().ports.len(), 4);
            let target = ("n1".parse().unwrap(), "198.51.100.11".parse().unwrap(), "4789/udp".parse().unwrap());
            assert_eq!(saved.states[&target], PortState::OpenFiltered);
        }
    }

    #[test]
    fn earlier_and_later_fields_are_no_matter() {
        let mut document: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        document.as_object_mut().unwrap().remove("scanned").unwrap();
        document["later"] = serde_json::json!([{"address": "198.51.100.11"}]);
        document["observations"][0]["later"] = "HTTP 200".into();
        let saved = Saved::parse(document.to_string().as_bytes()).unwrap();
        assert_eq!((saved.scanned, saved.states.len()), (None, 6));
    }

    #[test]
    fn an_error_in_a_line_names_the_line() {
        let error = error(&lines().replacen("\"port\":443", "\"port\":\"https\"", 1));
        assert!(error.contains("at line 2 column"), "{error}");
    }

    #[test]
    fn refuses_by_name() {
        let golden = |from: &str, to: &str| GOLDEN.replacen(from, to, 1);
        let cut = &lines()[..lines().trim_end().rfind('\n').unwrap()];
        for (text, wanted) in [
            ("", "it is empty"),
            (" \n", "it is empty"),
            ("Starting Nmap", "it is not JSON: expected value at line 1 column 1"),
            ("[1, 2]", "it has no schema"),
            ("{}", "it has no schema"),
            (cut, "it has no schema: it is no saved scan, or its last line is gone"),
            (&GOLDEN[..GOLDEN.len() / 2], "it ends too early: EOF"),
            (&GOLDEN.repeat(2), "it holds more than one scan"),
            (&golden("scan/v1", "scan/v2"), "its schema is deadlight.scan/v2, and this version reads"),
            (&golden("scan/v1", "diff/v1"), "its schema is `deadlight.diff/v1` and not deadlight.scan/v1"),
            (&golden("scan/v1", "\\u001b[2J"), "its schema is `deadlight.\\u{1b}[2J`"),
            (&golden("\"state\": \"open\"", "\"state\": \"\\u001b[2J\""), "unknown variant `\\u{1b}[2J`"),
            (&golden("\"complete\"", "\"done\""), "missing field `complete` at line"),
            (&golden("\"port\": 443", "\"port\": 0"), "expected a nonzero u16 at line 32"),
            (&golden("\"port\": 443", "\"port\": 80"), "it lists 80/tcp of 198.51.100.11 (node n1) more than once"),
        ] {
            let error = error(text);
            assert!(error.contains(wanted), "no {wanted:?} in {error:?}");
        }
    }
}
