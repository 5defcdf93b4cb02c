//! `allow`: an entry for the allowlist, checked against the rest of it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use clap::Args;
use deadlight_shared::hint::HintExt as _;
use deadlight_shared::text::printable;
use deadlight_shared::{Name, PortSet, file};
use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;
use toml::value::Datetime;

use super::allowlist::SIGN;
use super::check::{self, ConfigFile, today};
use super::{Exit, Failure, print};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Ports that are meant to be open, like 8080/tcp or 5000-5010/udp
    ports: PortSet,
    /// A node by its name; may be repeated
    #[arg(long = "node", value_name = "NODE", required_unless_present_any = ["label", "everywhere"])]
    nodes: Vec<Name>,
    /// Nodes by their label; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    label: Vec<String>,
    /// Every node
    #[arg(long, conflicts_with_all = ["nodes", "label"])]
    everywhere: bool,
    /// Who answers for it
    #[arg(long)]
    owner: String,
    /// Why it is open
    #[arg(long)]
    reason: String,
    /// The last day on which it may be; without it, for ever
    #[arg(long, value_name = "DATE")]
    expires: Option<Date>,
    /// Add it to the configuration instead of only showing it
    #[arg(long)]
    write: bool,
}

#[derive(Serialize)]
struct Document {
    allow: [Entry; 1],
}

/// As it stands in the configuration.
#[derive(Serialize)]
struct Entry {
    ports: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
    owner: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<Datetime>,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    // What a link points at is written, not the link.
    let path = fs::canonicalize(&arguments.file.config).unwrap_or_else(|_| arguments.file.config.clone());
    let today = today(Timestamp::now());
    // What is wrong with the file itself is not the entry's fault.
    let config = check::load(&path, today)?;
    let is_unknown = |label: &&String| !config.nodes.iter().any(|node| node.labels.contains(label));
    if let Some(label) = arguments.label.iter().find(is_unknown) {
        return Err(format!("no [[node]] has the label {}", printable(label, 80))).hint("nodes are named by --node")?;
    }
    if let Some(day) = arguments.expires.filter(|day| *day < today) {
        return Err(format!("--expires {day} is over")).hint("a day of the form 2027-01-31, today or later")?;
    }
    let write = arguments.write;
    let entry = format!("[[allow]]\n{}", entry(arguments)?);
    let text = fs::read_to_string(&path)?;
    let extended = format!("{}\n\n{entry}", text.trim_end());
    let config = Config::parse(&extended, &path, today)
        .hint("change the entry that is there, or the ports; nothing was written")?;
    let mut shown = entry;
    if write {
        let before = fs::metadata(&path)?;
        file::replace(&path, extended.as_bytes(), before.permissions().mode() & 0o7777)
            .and_then(|()| chown(&path, Some(before.uid()), Some(before.gid())))
            .map_err(|error| format!("failed to write {}: {error}", path.display()))?;
        shown += &format!(
            "\nadded to {}; a scanner that runs reads it on SIGHUP (systemctl reload deadlight-scanner)\n",
            path.display()
        );
    } else {
        shown += &format!("\nfor {}; --write adds it\n", path.display());
    }
    if config.signed.exists() {
        shown += &format!("agents that know an operator's key open it once it is signed: {SIGN}\n");
    }
    print(&shown)
}

/// The lines of the entry below its header.
fn entry(arguments: Arguments) -> Result<String, Failure> {
    let Arguments { ports, nodes, label: labels, everywhere, owner, reason, expires, .. } = arguments;
    let nodes = match everywhere {
        true => vec!["*".to_owned()],
        false => nodes.into_iter().map(|node| node.to_string()).collect(),
    };
    let expires = expires.map(|day| day.to_string().parse()).transpose()?;
    let document = Document { allow: [Entry { ports: ports.to_string(), nodes, labels, owner, reason, expires }] };
    let text = toml::to_string(&document)?;
    Ok(text.trim_start_matches("[[allow]]\n").to_owned())
}
