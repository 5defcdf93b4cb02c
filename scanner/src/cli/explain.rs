//! `explain`: why a port is open, as the agent on its node knows it.

use std::io::Write as _;
use std::net::IpAddr;

use clap::{Args, ValueEnum};
use deadlight_shared::explained::text;
use deadlight_shared::hint::{HintExt as _, causes};
use deadlight_shared::{Name, Port};
use jiff::Timestamp;

use super::check::{self, ConfigFile, today};
use super::past::{Which, hinted, wanted, write_json};
use super::{Exit, Failure, written};
use crate::config::{Config, Way};
use crate::deliver::Agent;
use crate::store::Database;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The port and its node, like n1:8080/tcp, or a finding's id
    port: Which,
    /// The address at which it answered, where the node has several
    #[arg(long)]
    address: Option<IpAddr>,
    #[command(flatten)]
    file: ConfigFile,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    /// People
    #[default]
    Text,
    /// Programs: one object, deadlight.explanation/v1
    Json,
}

pub(super) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let config = check::load(&arguments.file.config, today(Timestamp::now()))?;
    let (node, port, address) = place(&config, &arguments.port).await?;
    let explanation = agent(&config, &node)?.explain(port, arguments.address.or(address)).await;
    let explanation =
        explanation.map_err(|error| format!("the agent of {node} does not explain it: {}", causes(&error)));
    let explanation = explanation.hint(format!("on the node: deadlight-agent explain {port}"))?;
    match arguments.output {
        Output::Json => write_json(&explanation)?,
        Output::Text => written(anstream::stdout().write_all(text(&explanation).as_bytes()))?,
    }
    Ok(Exit::Fine)
}

/// The node and the port; and where a finding is named by its id, its address.
async fn place(config: &Config, which: &Which) -> Result<(Name, Port, Option<IpAddr>), Failure> {
    if let Which::Place(node, port) = which {
        return Ok((node.clone(), *port, None));
    }
    let database = Database::open_existing(&config.store, &config.vantage).await.map_err(hinted)?;
    let findings = wanted(&database, which).await?;
    database.close().await;
    let Some(finding) = findings.into_iter().next() else { return Err("no such finding was ever made".into()) };
    let port = finding.port();
    Ok((finding.node, port, Some(finding.address)))
}

fn agent(config: &Config, name: &Name) -> Result<Agent, Failure> {
    let Some(node) = config.nodes.iter().find(|node| node.name == *name) else {
        let names: Vec<_> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        return Ok(Err(format!("the configuration has no node {name}")).hint(format!("it has {}", names.join(", ")))?);
    };
    match &node.agent {
        None => return Ok(Err(format!("{name} has no agent")).hint(format!("deadlight-scanner enroll {name}"))?),
        Some(Way::Pull) => {
            let hint = "on the node: deadlight-agent explain";
            return Ok(
                Err(format!("the agent of {name} listens to the scanner that runs, and to nobody else")).hint(hint)?
            );
        }
        Some(Way::Push(_)) => {}
    }
    check::agents(config, None)?.remove(name).ok_or_else(|| "there is no certificate".into())
}
