//! `history`: what became of findings, and why.

use std::io::{self, Write};

use clap::Args;
use deadlight_shared::{Finding, FindingId, Name, Port};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::super::check::ConfigFile;
use super::super::{Exit, Failure, written};
use super::which::{Which, wanted};
use super::{Output, hinted, open, write_json};
use crate::store::{Event, Past};

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// The whole story of one finding: its id, or its place like n1:8080/tcp
    finding: Option<Which>,
    /// Of all findings, how far back
    #[arg(long, value_name = "DURATION", default_value = "168h", conflicts_with = "finding")]
    since: SignedDuration,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    events: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    finding: &'a FindingId,
    node: &'a Name,
    address: std::net::IpAddr,
    port: Port,
    #[serde(flatten)]
    event: &'a Event,
}

pub(in crate::cli) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let (_, database) = open(&arguments.file).await?;
    let past = Past(&database);
    let now = Timestamp::now();
    let events = match &arguments.finding {
        None => past.events(now.checked_sub(arguments.since)?, now).await.map_err(hinted)?,
        Some(which) => {
            let findings = wanted(&database, which).await?;
            let mut events = Vec::new();
            for finding in findings {
                let story = past.story(&finding.id).await.map_err(hinted)?;
                events.extend(story.into_iter().map(|event| (finding.clone(), event)));
            }
            events
        }
    };
    match arguments.output {
        Output::Json => {
            let entries = events.iter().map(|(finding, event)| Entry {
                finding: &finding.id,
                node: &finding.node,
                address: finding.address,
                port: finding.port(),
                event,
            });
            write_json(&Document { schema: "deadlight.history/v1", events: entries.collect() })?;
        }
        Output::Table => written(write(&events, &mut anstream::stdout().lock()))?,
    }
    Ok(Exit::Fine)
}

fn write(events: &[(Finding, Event)], out: &mut impl Write) -> io::Result<()> {
    if events.is_empty() {
        return writeln!(out, "Nothing happened.");
    }
    for (Finding { node, address, protocol, port, .. }, Event { at, vantage, status, why }) in events {
        writeln!(out, "{at:.0}  {node} {address} {port}/{protocol}  {status}: {why} ({vantage})")?;
    }
    Ok(())
}
