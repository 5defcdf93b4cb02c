//! `backup`: a copy of the database.

use std::path::PathBuf;

use clap::Args;

use super::super::check::ConfigFile;
use super::super::{Exit, Failure, print};
use super::{hinted, open};

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// The copy, which must not be there yet
    copy: PathBuf,
}

pub(in crate::cli) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let (_, database) = open(&arguments.file).await?;
    database.back_up(&arguments.copy).await.map_err(hinted)?;
    let (location, copy) = (database.location(), arguments.copy.display());
    print(&format!(
        "{location} is copied to {copy}; to go back to it: stop the scanner, remove {location}-wal and {location}-shm, put the copy in its place with the same owner\n"
    ))
}
