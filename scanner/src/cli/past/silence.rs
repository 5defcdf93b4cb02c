//! `silence`: nobody is told of a finding for a while.

use clap::Args;
use deadlight_shared::hint::HintExt as _;
use deadlight_shared::text::printable;
use jiff::{SignedDuration, Timestamp};

use super::super::check::ConfigFile;
use super::super::{Exit, Failure, print};
use super::which::{Which, wanted};
use super::{hinted, open};
use crate::store::Silence;

/// Whoever needs longer wants an entry of the allowlist.
const LONGEST: SignedDuration = SignedDuration::from_hours(24 * 90);

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// The finding: its id, or its place like n1:8080/tcp
    finding: Which,
    /// How long, like 2h; 0s ends it
    #[arg(long = "for", value_name = "DURATION")]
    length: SignedDuration,
    /// Why
    #[arg(long)]
    comment: String,
    /// Who wants so; you, where nothing is said
    #[arg(long)]
    author: Option<String>,
}

pub(in crate::cli) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let Arguments { file, finding: which, length, comment, author } = arguments;
    if length.is_negative() || length > LONGEST {
        return Ok(Err(format!("--for {length:#}: must be between 0s and {LONGEST:#}"))
            .hint("what is meant to be open for longer gets an entry: deadlight-scanner allow")?);
    }
    if comment.trim().is_empty() {
        return Err("--comment says nothing".into());
    }
    let known = || ["SUDO_USER", "USER"].into_iter().find_map(|name| std::env::var(name).ok());
    let author = author.or_else(known).unwrap_or_else(|| "unknown".to_owned());
    let (_, database) = open(&file).await?;
    let begun = Timestamp::now();
    let ends = begun.checked_add(length)?;
    let mut text = String::new();
    for finding in wanted(&database, &which).await? {
        let (author, comment) = (author.clone(), comment.clone());
        let silence = Silence { finding: finding.id.clone(), begun, ends, author, comment };
        database.silence(&silence).await.map_err(hinted)?;
        let until = if length.is_zero() { "no longer silent".to_owned() } else { format!("silent until {ends:.0}") };
        let author = printable(&silence.author, 80);
        text += &format!("{} {} {}: {until} ({author})\n", finding.node, finding.address, finding.port());
    }
    print(&text)
}
