//! `status`: whether anything is open that should not be, and how good that knowledge is.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use comfy_table::{Cell, Table, presets};
use deadlight_shared::text::printable;
use deadlight_shared::{Finding, FindingStatus, Name};
use jiff::{SignedDuration, Timestamp, Unit};
use serde::Serialize;

use super::super::check::ConfigFile;
use super::super::{Exit, Failure, counted, written};
use super::{ALARM, DOUBT, GOOD, Output, findings, hinted, open, write_json, write_table};
use crate::store::{Contact, Past, State, Swept};

pub(in crate::cli) const HELP: &str = "\
Exit status:
  0  no unexpected port is open, and the last sweep is complete and not old
  1  an unexpected port is open
  2  usage, configuration or run-time error
  3  not known well enough: no sweep, an old or an incomplete one, or a closing that is not proven";

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// What `status` says.
#[derive(Debug, Serialize)]
struct Status {
    schema: &'static str,
    open: usize,
    unproven: usize,
    closed: usize,
    allowed: usize,
    sweep: Option<Sweep>,
    agents: BTreeMap<Name, Contact>,
    #[serde(skip)]
    findings: Exit,
}

/// The last sweep of this vantage point.
#[derive(Debug, Serialize)]
struct Sweep {
    #[serde(flatten)]
    swept: Swept,
    complete: bool,
    late: bool,
    #[serde(skip)]
    age: SignedDuration,
}

pub(in crate::cli) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let (config, database) = open(&arguments.file).await?;
    let mut state = database.load().await.map_err(hinted)?;
    state.contacts.retain(|name, _| config.nodes.iter().any(|node| node.name == *name));
    let last = Past(&database).last_sweep(&config.vantage).await.map_err(hinted)?;
    let status = status(state, last, config.every, Timestamp::now());
    match arguments.output {
        Output::Json => write_json(&status)?,
        Output::Table => written(write(&status, &mut anstream::stdout().lock()))?,
    }
    Ok(status.exit())
}

fn status(state: State, last: Option<Swept>, every: Duration, now: Timestamp) -> Status {
    let count = |is: fn(&Finding) -> bool| state.findings.iter().filter(|finding| is(finding)).count();
    let sweep = last.map(|swept| {
        let age = now.duration_since(swept.finished);
        let late = age.unsigned_abs() > 2 * every;
        Sweep { complete: swept.is_complete(), late, age, swept }
    });
    Status {
        schema: "deadlight.status/v1",
        open: count(|finding| !finding.status.is_over() && finding.status != FindingStatus::Enforced),
        unproven: count(|finding| finding.status == FindingStatus::Enforced),
        closed: count(|finding| finding.status == FindingStatus::Resolved),
        allowed: count(|finding| finding.status == FindingStatus::Accepted),
        sweep,
        findings: findings::exit(&state.findings),
        agents: state.contacts,
    }
}

impl Status {
    fn exit(&self) -> Exit {
        let is_known = self.sweep.as_ref().is_some_and(|sweep| sweep.complete && !sweep.late);
        match self.findings {
            Exit::Fine if !is_known => Exit::Incomplete,
            exit => exit,
        }
    }
}

fn write(status: &Status, out: &mut impl Write) -> io::Result<()> {
    match (status.exit(), status.open) {
        (Exit::Fine, _) => writeln!(out, "{GOOD}Nothing unexpected is open.{GOOD:#}")?,
        (Exit::Exposed, open) => writeln!(out, "{ALARM}Open and not allowed: {}.{ALARM:#}", counted(open, "port"))?,
        _ => writeln!(out, "{DOUBT}Nothing unexpected is known to be open, and not everything is known.{DOUBT:#}")?,
    }
    let Status { unproven, closed, allowed, .. } = status;
    writeln!(out, "findings: {unproven} closed and not proven, {closed} proven closed, {allowed} allowed by now")?;
    match &status.sweep {
        None => writeln!(out, "{DOUBT}last sweep: none{DOUBT:#}")?,
        Some(Sweep { swept, complete, late, age }) => {
            let age = age.round(Unit::Second).unwrap_or(*age);
            let quality = if *complete { "complete" } else { "INCOMPLETE" };
            let late = if *late { "; LATE: the next one is overdue" } else { "" };
            writeln!(out, "last sweep: {:.0}, {age:#} ago, {quality}: {}{late}", swept.finished, swept.tally)?;
        }
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["AGENT", "MODE", "LAST REPORT", "TROUBLE"]);
    for (node, contact) in &status.agents {
        table.add_row([
            Cell::new(node),
            Cell::new(contact.mode.map(|mode| mode.to_string()).unwrap_or_default()),
            Cell::new(contact.answered.map_or_else(|| "never".to_owned(), |at| format!("{at:.0}"))),
            Cell::new(printable(contact.trouble.as_deref().unwrap_or_default(), 100)),
        ]);
    }
    write_table(&table, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::Ending;
    use crate::sweep::Tally;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    fn swept(ending: Ending) -> Swept {
        Swept { started: at(0), finished: at(1), interrupted: false, tally: Tally::default(), ending }
    }

    #[test]
    fn an_old_or_incomplete_sweep_says_nothing() {
        let every = Duration::from_secs(900);
        let exit = |last, now| status(State::default(), last, every, now).exit();
        assert_eq!(exit(None, at(2)), Exit::Incomplete);
        assert_eq!(exit(Some(swept(Ending::default())), at(2)), Exit::Fine);
        assert_eq!(exit(Some(swept(Ending::default())), at(31)), Exit::Fine);
        assert_eq!(exit(Some(swept(Ending::default())), at(32)), Exit::Incomplete);
        let unknown = Ending { unknown: 1, ..Ending::default() };
        assert_eq!(exit(Some(swept(unknown)), at(2)), Exit::Incomplete);
        assert_eq!(exit(Some(Swept { interrupted: true, ..swept(Ending::default()) }), at(2)), Exit::Incomplete);
    }
}
