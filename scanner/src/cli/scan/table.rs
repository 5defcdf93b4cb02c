//! `--output table`: for people.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, Color, Table, presets};
use deadlight_shared::text::printable;
use deadlight_shared::{Observation, PortState};

use super::super::counted;
use super::Scan;

const ALARM: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const DOUBT: Style = AnsiColor::Yellow.on_default();

pub(super) fn write(scan: &Scan, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["", "NODE", "ADDRESS", "PORT", "STATE", "EVIDENCE", "BEHIND IT"]);
    for observation in &scan.sweep.observations {
        table.add_row(row(scan, observation));
    }
    if !table.is_empty() {
        for line in table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out, "\n!! open and not allowed   ok open and allowed   .. allowed and not open   ?? not known\n")?;
    }
    doubts(scan, out)?;
    for missing in &scan.assessment.missing {
        writeln!(out, "{DOUBT}missing{DOUBT:#}: {} of node {} is allowed and not open", missing.port, missing.node)?;
    }
    summary(scan, out)
}

fn row(scan: &Scan, seen: &Observation) -> [Cell; 7] {
    let allowed = scan.may_be_open(&seen.node, seen.port);
    let (mark, colour) = match (seen.state, allowed) {
        (PortState::Open, false) => ("!!", Color::Red),
        (PortState::Open, true) => ("ok", Color::Green),
        (PortState::Closed | PortState::Filtered, _) => ("..", Color::Yellow),
        (PortState::OpenFiltered | PortState::Unknown, _) => ("??", Color::Yellow),
    };
    [
        Cell::new(mark).fg(colour),
        Cell::new(&seen.node),
        Cell::new(seen.address),
        Cell::new(seen.port),
        Cell::new(seen.state),
        Cell::new(printable(&seen.evidence.to_string(), 120)),
        Cell::new(printable(seen.service.as_deref().unwrap_or_default(), 60)),
    ]
}

/// What could not be asked or believed, one line for each address and name.
fn doubts(scan: &Scan, out: &mut impl Write) -> io::Result<()> {
    for (address, open) in &scan.sweep.liars {
        let said = counted(*open, "port");
        writeln!(
            out,
            "{DOUBT}not believed{DOUBT:#}: {address} answered on {said}: something before it answers everything"
        )?;
    }
    for unasked in &scan.sweep.unasked {
        let (ports, why) = (counted(unasked.ports.len(), "port"), printable(&unasked.why(), 220));
        writeln!(out, "{DOUBT}unknown{DOUBT:#}: {} ({ports}) {why}", unasked.address)?;
    }
    for unresolved in &scan.unresolved {
        let reason = printable(&unresolved.reason(), 200);
        writeln!(out, "{DOUBT}unknown{DOUBT:#}: {} could not be asked: {reason}", unresolved.target)?;
    }
    Ok(())
}

fn summary(scan: &Scan, out: &mut impl Write) -> io::Result<()> {
    let tally = scan.sweep.tally;
    let seconds = scan.sweep.duration.as_secs_f64();
    writeln!(out, "{} targets in {seconds:.1} s ({:.0} probes/s): {tally}.", tally.targets, scan.speed())?;
    match (scan.assessment.exposed.len(), scan.is_complete()) {
        (0, true) => writeln!(out, "{GOOD}Nothing unexpected.{GOOD:#}"),
        (0, false) => writeln!(out, "{DOUBT}Nothing unexpected was seen, but not everything could be asked.{DOUBT:#}"),
        (count, _) => writeln!(out, "{ALARM}Open and not allowed: {}.{ALARM:#}", counted(count, "port")),
    }
}
