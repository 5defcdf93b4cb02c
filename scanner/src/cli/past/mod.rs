//! What is remembered, for people and programs: `status`, `findings`, `history`, `silence`, `backup`.

pub(super) mod backup;
pub(super) mod findings;
pub(super) mod history;
pub(super) mod silence;
pub(super) mod status;
mod which;

pub(super) use which::{Which, wanted};

use std::io::{self, Write};

use anstyle::Style;
use clap::ValueEnum;
use comfy_table::Table;
use deadlight_shared::doctor::Grade;
use deadlight_shared::hint::Hinted;
use jiff::Timestamp;
use serde::Serialize;

use super::check::{self, ConfigFile, today};
use super::{Failure, written};
use crate::config::Config;
use crate::store::{Database, DatabaseError};

pub(super) const ALARM: Style = Grade::Wrong.style();
pub(super) const GOOD: Style = Grade::Well.style();
pub(super) const DOUBT: Style = Grade::Doubt.style();

/// For whom it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// People
    Table,
    /// Programs: one object
    Json,
}

/// An error of the database with what to do about it.
pub(super) fn hinted(error: DatabaseError) -> Hinted {
    let remedy = match error {
        DatabaseError::Absent { .. } => "`deadlight-scanner run` makes it; with --once it sweeps once and ends",
        DatabaseError::Busy { .. } => "stop the other one, or give this one a database of its own",
        DatabaseError::Taken { .. } => "stop one of them, or give each a [vantage] id of its own",
        DatabaseError::ServerBackup { .. } => "pg_dump makes a copy",
        DatabaseError::Copy { .. } => "name a file that is not there, in a directory that can be written",
        DatabaseError::Version { .. } => {
            "a scanner brings older tables up to date when it starts; else use the program that the scanner is of"
        }
        DatabaseError::Tables { .. } => "a newer deadlight-scanner may have written it; or restore it from a backup",
        _ if error.is_of_the_disk() => {
            "see to it that the disk has room, and that the directory and the file can be written"
        }
        DatabaseError::File { .. }
        | DatabaseError::Open { .. }
        | DatabaseError::Read { .. }
        | DatabaseError::Write { .. } => {
            "a file: restore it from a backup, or move it away to begin anew; a server: it must be there, know the user and \
             have room"
        }
    };
    Hinted::new(error, remedy)
}

/// The configuration, and what a scanner with it has left.
pub(super) async fn open(file: &ConfigFile) -> Result<(Config, Database), Failure> {
    let config = check::load(&file.config, today(Timestamp::now()))?;
    let database = Database::open_existing(&config.store, &config.vantage).await.map_err(hinted)?;
    Ok((config, database))
}

pub(super) fn write_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(written(anstream::stdout().write_all(text.as_bytes()))?)
}

fn write_table(table: &Table, out: &mut impl Write) -> io::Result<()> {
    for line in table.lines().filter(|_| !table.is_empty()) {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
