//! `diff`: two saved scans against each other, or the last two sweeps.

mod compare;
mod document;
mod remembered;
pub(super) mod saved;
mod table;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use deadlight_shared::hint::{HintExt as _, Hinted};
use deadlight_shared::text::printable;

use super::check::ConfigFile;
use super::{Exit, Failure, written};
use compare::compare;
use saved::{Saved, SavedError};

/// Largest scan that is read. A listed port takes some 240 bytes, and the longest lists are those of
/// addresses that could not be asked: this holds all TCP ports of 16 of them. A scan is in memory as a
/// whole while it is read.
const MOST_BYTES: u64 = 256 << 20;

pub(super) const HELP: &str = "\
Changes:
  opened   open now, and it was closed or filtered
  gone     it was open, and is closed or filtered now
  changed  another state
  unclear  known in one of the scans only

Exit status:
  0  equal: the same was looked at, and the same was seen
  1  different
  2  usage error, or a scan that cannot be read";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The earlier scan, saved with scan --output json or jsonl; - is standard input. Without A and B, the last two complete
    /// sweeps of the database are compared
    #[arg(value_name = "A", requires = "after")]
    before: Option<PathBuf>,
    /// The later scan, saved likewise
    #[arg(value_name = "B")]
    after: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
    /// What to print
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// One JSON object, schema deadlight.diff/v1
    Json,
}

#[derive(Debug, thiserror::Error)]
enum DiffError {
    #[error("both scans are to come from standard input")]
    OneInput,
    #[error("failed to read {name}")]
    Read { name: String, source: io::Error },
    #[error("{name} is too large: a scan of more than {} MiB is not read", MOST_BYTES >> 20)]
    TooLarge { name: String },
    #[error("{name} is no saved scan")]
    NoScan { name: String, source: SavedError },
}

pub(super) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let ([before_name, after_name], [before, after]) = match (&arguments.before, &arguments.after) {
        (Some(before), Some(after)) if is_input(before) && is_input(after) => {
            return Err(DiffError::OneInput).hint("give a file for one of them")?;
        }
        (Some(before), Some(after)) => ([name(before), name(after)], [load(before)?, load(after)?]),
        _ => {
            let names = ["the sweep before", "the last complete sweep"].map(str::to_owned);
            (names, remembered::last_two(&arguments.file).await?)
        }
    };
    let found = compare(&before, &after);
    let show = || match arguments.output {
        Output::Table => {
            let mut out = BufWriter::new(anstream::stdout());
            table::write([(&before_name, &before), (&after_name, &after)], &found, &mut out)?;
            out.flush()
        }
        Output::Json => {
            let mut out = BufWriter::new(io::stdout());
            document::write([&before, &after], &found, &mut out)?;
            out.flush()
        }
    };
    written(show())?;
    Ok(if found.is_equal() { Exit::Fine } else { Exit::Exposed })
}

fn load(path: &Path) -> Result<Saved, Hinted> {
    let name = || name(path);
    let bytes = read(path).map_err(|source| DiffError::Read { name: name(), source });
    let bytes = bytes.hint("save a scan with: deadlight-scanner scan TARGET --output json > FILE")?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(DiffError::TooLarge { name: name() }).hint("scan in smaller blocks, and compare block by block");
    }
    Saved::parse(&bytes).map_err(|source| {
        let hint = source.hint();
        Hinted::new(DiffError::NoScan { name: name(), source }, hint)
    })
}

/// At most one byte more than allowed.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let source: Box<dyn Read> = match is_input(path) {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path)?),
    };
    let mut bytes = Vec::new();
    source.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn name(path: &Path) -> String {
    match is_input(path) {
        true => "standard input".to_owned(),
        false => printable(&path.display().to_string(), 200),
    }
}
