//! `--output table`: for people.

use std::io::{self, Write};
use std::net::IpAddr;

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, Color, Table, presets};
use deadlight_shared::text::printable;
use deadlight_shared::{Name, PortSet, PortState};

use super::compare::{Change, Comparison, Kind, Reach, View};
use super::saved::Saved;

const DOUBT: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default();

/// Longest list of ports or addresses under the table.
const SHOWN: usize = 300;

/// `scans` are the earlier and the later one, each with the name of its file.
pub(super) fn write(scans: [(&str, &Saved); 2], found: &Comparison, out: &mut impl Write) -> io::Result<()> {
    for (word, (name, saved)) in ["before", "after"].into_iter().zip(scans) {
        writeln!(out, "{word:<7} {name}: seen from {} at {:.0}", saved.vantage, saved.started)?;
    }
    writeln!(out)?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["", "NODE", "ADDRESS", "PORT", "BEFORE", "AFTER"]);
    table.add_rows(rows(&found.changes).iter().map(Row::cells));
    if !table.is_empty() {
        for line in table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out)?;
    }
    for (word, (_, saved), reach) in [("before", scans[0], &found.only_before), ("after", scans[1], &found.only_after)]
    {
        scope(word, saved, reach, out)?;
    }
    let counts = Kind::ALL.map(|kind| format!("{} {}", found.count(kind), kind.as_str())).join(", ");
    match (found.changes.is_empty(), found.same_scope) {
        (true, true) => writeln!(out, "{GOOD}No difference.{GOOD:#}"),
        (true, false) => {
            writeln!(out, "{DOUBT}No change is known, but not the same was looked at, or not as completely.{DOUBT:#}")
        }
        (false, _) => writeln!(out, "{counts}."),
    }
}

/// Targets of one address to which the same happened.
struct Row<'a> {
    kind: Kind,
    node: &'a Name,
    address: IpAddr,
    ports: PortSet,
    before: View,
    after: View,
}

/// Open ports get a row each; others may be very many and share one with their neighbours.
fn rows(changes: &[Change]) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for Change { kind, target: (node, address, port), before, after } in changes {
        let is_open = [before, after].contains(&&View::Seen(PortState::Open));
        match rows.last_mut().filter(|row| {
            !is_open && (row.node, row.address, row.before, row.after) == (node, *address, *before, *after)
        }) {
            Some(row) => row.ports.insert(*port),
            None => rows.push(Row {
                kind: *kind,
                node,
                address: *address,
                ports: [*port].into_iter().collect(),
                before: *before,
                after: *after,
            }),
        }
    }
    rows
}

impl Row<'_> {
    fn cells(&self) -> [Cell; 6] {
        let colour = match self.kind {
            Kind::Opened => Color::Red,
            Kind::Gone => Color::Green,
            Kind::Changed | Kind::Unclear => Color::Yellow,
        };
        [
            Cell::new(self.kind.as_str()).fg(colour),
            Cell::new(self.node),
            Cell::new(self.address),
            Cell::new(&self.ports),
            Cell::new(self.before),
            Cell::new(self.after),
        ]
    }
}

/// What has to be known about one of the scans to read the table.
fn scope(word: &str, saved: &Saved, only: &Reach, out: &mut impl Write) -> io::Result<()> {
    if saved.scanned.is_none() {
        writeln!(out, "{DOUBT}{word}{DOUBT:#}: does not say what was scanned; what is not listed is unknown")?;
    }
    if !saved.complete {
        writeln!(out, "{DOUBT}{word}{DOUBT:#}: incomplete; what is not listed is unknown")?;
    }
    if !only.ports.is_empty() {
        writeln!(out, "{DOUBT}{word}{DOUBT:#}: only here scanned: {}", printable(&only.ports.to_string(), SHOWN))?;
    }
    if !only.addresses.is_empty() {
        let addresses: Vec<_> = only.addresses.iter().map(|(node, address)| format!("{address} ({node})")).collect();
        writeln!(out, "{DOUBT}{word}{DOUBT:#}: only here scanned: {}", printable(&addresses.join(", "), SHOWN))?;
    }
    Ok(())
}
