//! `status`: whether anything is open that should not be, and how good that knowledge is.

use std::io::{self, Write};

use clap::Args;
use comfy_table::{Cell, Table, presets};
use deadlight_shared::text::printable;
use jiff::Timestamp;

use super::super::check::ConfigFile;
use super::super::{Exit, Failure, written};
use super::{ALARM, DOUBT, GOOD, Output, hinted, open, write_json, write_table};
use crate::store::Past;
use crate::view::{LastSweep, Status, Verdict};

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
    /// Exit with 0 as long as sweeps come when they are due, whatever they show, and else with 3: for a HEALTHCHECK
    #[arg(long)]
    health: bool,
}

pub(in crate::cli) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let (config, database) = open(&arguments.file).await?;
    let mut state = database.load_all().await.map_err(hinted)?;
    state.contacts.retain(|name, _| config.has_agent(name));
    let now = Timestamp::now();
    let coverage = Past(&database).coverage(&config.vantage, now).await.map_err(hinted)?;
    let status = Status::new(&state, coverage, &config, now);
    match arguments.output {
        Output::Json => write_json(&status)?,
        Output::Table => written(write(&status, &mut anstream::stdout().lock()))?,
    }
    Ok(match (arguments.health, &status.sweep) {
        (true, Some(LastSweep { late: false, .. })) => Exit::Fine,
        (true, _) => Exit::Incomplete,
        (false, _) => exit(status.verdict()),
    })
}

fn exit(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Fine => Exit::Fine,
        Verdict::Exposed => Exit::Exposed,
        Verdict::Unsure => Exit::Incomplete,
    }
}

fn write(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let style = match status.verdict() {
        Verdict::Fine => GOOD,
        Verdict::Exposed => ALARM,
        Verdict::Unsure => DOUBT,
    };
    writeln!(out, "{style}{}{style:#}", status.sentence())?;
    let Status { unproven, closed, allowed, .. } = status;
    writeln!(out, "findings: {unproven} closed and not proven, {closed} proven closed, {allowed} allowed by now")?;
    match &status.sweep {
        None => writeln!(out, "{DOUBT}last sweep: none{DOUBT:#}")?,
        Some(LastSweep { swept, complete, late, age }) => {
            let quality = if *complete { "complete" } else { "INCOMPLETE" };
            let late = if *late { "; LATE: the next one is overdue" } else { "" };
            writeln!(out, "last sweep: {:.0}, {age:#} ago, {quality}: {}{late}", swept.finished, swept.tally)?;
        }
    }
    if let Some(doubt) = status.doubt() {
        writeln!(out, "{DOUBT}{doubt}{DOUBT:#}")?;
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
