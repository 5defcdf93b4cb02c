//! `--output json`: schema deadlight.diff/v1.

use std::io::{self, Write};
use std::net::IpAddr;
use std::num::NonZeroU16;

use deadlight_shared::{Name, Protocol};
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::super::scan::document::Scanned;
use super::compare::{Change, Comparison, Kind, View};
use super::saved::Saved;

const SCHEMA: &str = "deadlight.diff/v1";

/// One indented object.
pub(super) fn write(scans: [&Saved; 2], found: &Comparison, out: &mut impl Write) -> io::Result<()> {
    let [before, after] = scans.map(side);
    let summary = Summary {
        opened: found.count(Kind::Opened),
        gone: found.count(Kind::Gone),
        changed: found.count(Kind::Changed),
        unclear: found.count(Kind::Unclear),
        same_scope: found.same_scope,
        equal: found.is_equal(),
    };
    let document = Document { schema: SCHEMA, before, after, changes: &found.changes, summary };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    before: Side<'a>,
    after: Side<'a>,
    #[serde(serialize_with = "shown")]
    changes: &'a [Change],
    summary: Summary,
}

#[derive(Serialize)]
struct Side<'a> {
    vantage: &'a Name,
    started: Timestamp,
    finished: Timestamp,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    scanned: Option<&'a Scanned>,
}

#[derive(Serialize)]
struct Shown<'a> {
    change: Kind,
    node: &'a Name,
    address: IpAddr,
    port: NonZeroU16,
    protocol: Protocol,
    before: View,
    after: View,
}

#[derive(Serialize)]
struct Summary {
    opened: usize,
    gone: usize,
    changed: usize,
    unclear: usize,
    same_scope: bool,
    equal: bool,
}

fn side(saved: &Saved) -> Side<'_> {
    let Saved { vantage, started, finished, complete, scanned, .. } = saved;
    let (started, finished, complete, scanned) = (*started, *finished, *complete, scanned.as_ref());
    Side { vantage, started, finished, complete, scanned }
}

fn shown<S: Serializer>(changes: &[Change], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(changes.iter().map(|Change { kind, target: (node, address, port), before, after }| Shown {
        change: *kind,
        node,
        address: *address,
        port: port.number,
        protocol: port.protocol,
        before: *before,
        after: *after,
    }))
}
