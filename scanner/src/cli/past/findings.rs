//! `findings`: what is open that should not be, as far as the last sweeps know.

use std::io::{self, Write};

use clap::Args;
use comfy_table::{Cell, Color, Table, presets};
use deadlight_shared::text::printable;
use deadlight_shared::{Finding, FindingStatus};
use jiff::Timestamp;
use serde::Serialize;

use super::super::check::ConfigFile;
use super::super::{Exit, Failure, counted, written};
use super::{ALARM, DOUBT, GOOD, Output, hinted, open, write_json, write_table};
use crate::store::{Past, Silence};

pub(in crate::cli) const HELP: &str = "\
Exit status:
  0  no unexpected port is open
  1  an unexpected port is open
  2  usage, configuration or run-time error
  3  an agent closed one, and that is not proven yet";

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Those as well that are over: proven closed, or allowed by now
    #[arg(long)]
    all: bool,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    findings: &'a [Finding],
    silences: &'a [Silence],
}

pub(in crate::cli) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let (_, database) = open(&arguments.file).await?;
    let mut findings = database.load_all().await.map_err(hinted)?.findings;
    let silences = Past(&database).silences(Timestamp::now()).await.map_err(hinted)?;
    let exit = exit(&findings);
    findings.retain(|finding| arguments.all || !finding.status.is_over());
    match arguments.output {
        Output::Json => {
            write_json(&Document { schema: "deadlight.findings/v1", findings: &findings, silences: &silences })?;
        }
        Output::Table => written(write(&findings, &silences, exit, &mut anstream::stdout().lock()))?,
    }
    Ok(exit)
}

/// What the findings amount to.
fn exit(findings: &[Finding]) -> Exit {
    let any = |is: fn(FindingStatus) -> bool| findings.iter().any(|finding| is(finding.status));
    match (any(FindingStatus::is_open), any(|status| !status.is_over())) {
        (true, _) => Exit::Exposed,
        (false, true) => Exit::Incomplete,
        (false, false) => Exit::Fine,
    }
}

fn write(findings: &[Finding], silences: &[Silence], exit: Exit, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["", "NODE", "ADDRESS", "PORT", "STATUS", "FIRST SEEN", "BEHIND IT"]);
    for finding in findings {
        table.add_row(row(finding));
    }
    write_table(&table, out)?;
    for silence in silences {
        let Some(finding) = findings.iter().find(|finding| finding.id == silence.finding) else { continue };
        let Finding { node, address, .. } = finding;
        let (author, comment) = (printable(&silence.author, 60), printable(&silence.comment, 120));
        writeln!(out, "silent until {:.0}: {node} {address} {} ({author}: {comment})", silence.ends, finding.port())?;
    }
    let open = findings.iter().filter(|finding| finding.status.is_open()).count();
    match exit {
        Exit::Exposed => writeln!(out, "{ALARM}Open and not allowed: {}.{ALARM:#}", counted(open, "port")),
        Exit::Fine => writeln!(out, "{GOOD}Nothing unexpected is open.{GOOD:#}"),
        _ => writeln!(out, "{DOUBT}Closed by the agents, and not proven yet.{DOUBT:#}"),
    }
}

fn row(finding: &Finding) -> [Cell; 7] {
    let (mark, colour) = match finding.status {
        status if status.is_over() => ("ok", Color::Green),
        FindingStatus::Enforced => ("??", Color::Yellow),
        _ => ("!!", Color::Red),
    };
    [
        Cell::new(mark).fg(colour),
        Cell::new(&finding.node),
        Cell::new(finding.address),
        Cell::new(finding.port()),
        Cell::new(finding.status),
        Cell::new(format!("{:.0}", finding.first_seen)),
        Cell::new(printable(finding.service.as_deref().unwrap_or_default(), 60)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assess::first_seen;
    use deadlight_shared::FindingId;

    fn finding(status: FindingStatus) -> Finding {
        let (node, address, port) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap(), "80/tcp".parse().unwrap());
        let id = FindingId::of(&node, address, port);
        Finding { status, ..first_seen(&id, node, address, port, jiff::Timestamp::UNIX_EPOCH) }
    }

    #[test]
    fn what_the_findings_amount_to() {
        use FindingStatus::{Accepted, Enforced, Failed, Observed, Open, Refused, Reopened, Reported, Resolved};
        assert_eq!(exit(&[]), Exit::Fine);
        assert_eq!(exit(&[finding(Resolved), finding(Accepted)]), Exit::Fine);
        assert_eq!(exit(&[finding(Resolved), finding(Enforced)]), Exit::Incomplete);
        for status in [Failed, Observed, Open, Refused, Reopened, Reported] {
            assert_eq!(exit(&[finding(Enforced), finding(status), finding(Resolved)]), Exit::Exposed, "{status}");
        }
    }
}
