//! `history`: what became of findings, and why.

use std::io::{self, Write};
use std::str::FromStr;

use clap::Args;
use deadlight_shared::{Finding, FindingId, Name, Port};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::super::check::ConfigFile;
use super::super::{Exit, Failure, written};
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

/// One finding, or those of a port at all addresses of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    Id(FindingId),
    Place(Name, Port),
}

/// The text names no finding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither a finding's id (16 hexadecimal digits) nor a place like n1:8080/tcp")]
struct WhichError;

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
            let findings = database.load().await.map_err(hinted)?.findings;
            let wanted: Vec<Finding> = findings.into_iter().filter(|finding| which.names(finding)).collect();
            if wanted.is_empty() {
                return Err(
                    "no finding of this name was ever made; `deadlight-scanner findings --all` lists them".into()
                );
            }
            let mut events = Vec::new();
            for finding in wanted {
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

impl Which {
    fn names(&self, finding: &Finding) -> bool {
        match self {
            Self::Id(id) => finding.id == *id,
            Self::Place(node, port) => finding.node == *node && finding.port() == *port,
        }
    }
}

impl FromStr for Which {
    type Err = WhichError;

    fn from_str(text: &str) -> Result<Self, WhichError> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let (node, port) = text.split_once(':').ok_or(WhichError)?;
        Ok(Self::Place(node.parse().map_err(|_| WhichError)?, port.parse().map_err(|_| WhichError)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_named_by_id_or_place() {
        assert!(matches!("31eaee584c38bfea".parse(), Ok(Which::Id(_))));
        assert_eq!("n1:8080/tcp".parse(), Ok(Which::Place("n1".parse().unwrap(), "8080/tcp".parse().unwrap())));
        for wrong in ["", "n1", "n1:", "n1:8080", ":8080/tcp", "n1:0/tcp", "31EAEE584C38BFEA", "n1:8080/tcp/x"] {
            assert_eq!(wrong.parse::<Which>(), Err(WhichError), "{wrong}");
        }
    }
}
