//! `allowlist`: what the operator signs, so that agents open no more than that.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use deadlight_shared::hint::HintExt as _;
use deadlight_shared::{OperatorKey, OperatorSecret, file};
use jiff::Timestamp;
use jiff::civil::Date;

use super::check::{self, ConfigFile, today};
use super::{Exit, Failure, print};
use crate::config::Config;
use crate::permits::{self, Intent, Permits, PermitsError, until};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Sign what [[allow]] says, after showing what that changes
    Sign(Sign),
    /// Print the signed allowlist
    Show(Show),
}

#[derive(Debug, Args)]
pub(super) struct Sign {
    #[command(flatten)]
    file: ConfigFile,
    /// The operator's private key; keep it away from the scanner's host
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The signed allowlist [default: [allowlist] signed]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Sign ranges of more than 100 ports as well
    #[arg(long)]
    wide: bool,
    /// Show the changes and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    file: ConfigFile,
    /// The operator's public key: checks the signatures, status 1 if one is not good
    #[arg(long, value_name = "FILE")]
    operator: Option<PathBuf>,
}

pub(super) fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Sign(arguments) => sign(arguments),
        Command::Show(arguments) => show(arguments),
    }
}

fn sign(arguments: Sign) -> Result<Exit, Failure> {
    let Sign { file, key, out, wide, dry_run } = arguments;
    let now = Timestamp::now();
    let today = today(now);
    let config = check::load(&file.config, today)?;
    let secret = secret(&key)?;
    if !wide {
        permits::check_width(&config, today).hint("name the ports, or sign with --wide")?;
    }
    let path = out.unwrap_or_else(|| config.signed.clone());
    let former = load(&path)?;
    let intent = permits::intent(&config, today);
    let signed = Permits::sign(&intent, former.as_ref(), &secret, now)
        .hint("name the ports that are meant; entries with the same last day share their place")?;
    let foreign = match &former {
        Some(former) => former.unsigned(&secret.public()?).count(),
        None => 0,
    };
    let before = former.as_ref().map(|former| former.intent(today)).unwrap_or_default();
    let changes = permits::changes(&before, &intent);
    if former.is_some() && before == intent && foreign == 0 {
        return print(&format!("nothing to sign: {} is what [[allow]] says\n", path.display()));
    }
    let mut text: String = changes.iter().map(|change| format!("{change}\n")).collect();
    if foreign > 0 {
        writeln!(text, "the former one was signed by another key")?;
    }
    print(&text)?;
    if dry_run {
        return print("nothing was written\n");
    }
    signed.save(&path)?;
    print(&format!("wrote {} (number {}); the next order carries it\n", path.display(), signed.number()))
}

fn show(arguments: Show) -> Result<Exit, Failure> {
    let today = today(Timestamp::now());
    let path = check::load(&arguments.file.config, today)?.signed;
    let Some(permits) = load(&path)? else {
        return Err(format!("{} is not there", path.display())).hint(SIGN)?;
    };
    let mut text = format!("{} (number {})\n", path.display(), permits.number());
    let intent: Intent = permits.intent(today);
    for (node, days) in &intent {
        let entries: Vec<_> = days.iter().map(|(expires, ports)| until(ports, *expires)).collect();
        writeln!(text, "{node}: {}", if entries.is_empty() { "nothing".to_owned() } else { entries.join("; ") })?;
    }
    let Some(operator) = arguments.operator else {
        return print(&(text + "signatures: not checked (--operator FILE)\n"));
    };
    let key = std::fs::read(&operator).map_err(|error| format!("failed to read {}: {error}", operator.display()))?;
    let key = OperatorKey::from_pem(&key).hint("operator.pub, as `pki init --operator-key` wrote it beside the CA")?;
    let bad: Vec<_> = permits.unsigned(&key).map(ToString::to_string).collect();
    match bad.is_empty() {
        true => print(&(text + "signatures: good\n")),
        false => print(&format!("{text}signatures: NOT by this key: {}\n", bad.join(", "))).map(|_| Exit::Exposed),
    }
}

/// How to come by a signed allowlist.
pub(super) const SIGN: &str = "deadlight-scanner allowlist sign --config FILE --key FILE";

/// The signed allowlist at `path`.
pub(super) fn load(path: &std::path::Path) -> Result<Option<Permits>, Failure> {
    match Permits::load(path) {
        malformed @ Err(PermitsError::Malformed { .. }) => {
            Ok(malformed.hint("restore it from where it was signed, or move it away and sign anew")?)
        }
        loaded => Ok(loaded?),
    }
}

/// In which points `permits` are not what `config` says, as sentences.
pub(super) fn unsigned(config: &Config, permits: &Permits, today: Date) -> Vec<String> {
    let changes = permits::changes(&permits.intent(today), &permits::intent(config, today));
    let sentence = |change: String| match change.split_at_checked(2) {
        Some(("+ ", what)) => {
            format!("{what} is allowed and not signed: agents that know an operator's key do not open it")
        }
        _ => format!("{} is signed and no longer allowed", change.trim_start_matches("- ")),
    };
    changes.into_iter().map(sentence).collect()
}

fn secret(path: &std::path::Path) -> Result<OperatorSecret, Failure> {
    let pem = file::read_secret(path).map_err(|error| format!("failed to read {}: {error}", path.display()))?;
    Ok(OperatorSecret::from_pem(&pem).hint("the FILE that `pki init --operator-key FILE` made")?)
}
