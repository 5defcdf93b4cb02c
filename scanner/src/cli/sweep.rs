//! `sweep now`: the scanner that runs does not wait for its next full sweep.

use std::time::Duration;

use clap::Subcommand;
use deadlight_shared::hint::HintExt as _;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::check::ConfigFile;
use super::past::{hinted, open};
use super::{Exit, Failure, print};

/// A scanner that is not in the middle of a round looks every second.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Ask for a full sweep, and wait until it begins
    Now(Arguments),
}

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Seconds to wait: the round that is under way comes to its end first
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

pub(super) async fn run(Command::Now(arguments): Command) -> Result<Exit, Failure> {
    let (config, database) = open(&arguments.file).await?;
    database.want_sweep(Timestamp::now()).await.map_err(hinted)?;
    let end = Instant::now() + Duration::from_secs(arguments.wait);
    while database.wanted_sweep().await.map_err(hinted)?.is_some() {
        if Instant::now() >= end {
            let error = format!("no scanner of {} has begun a sweep within {} s", config.vantage, arguments.wait);
            let hint = "start one: deadlight-scanner run; one that is amid a round sweeps when that is over";
            return Ok(Err(error).hint(hint)?);
        }
        sleep(POLL).await;
    }
    database.close().await;
    print("A full sweep has begun; `deadlight-scanner status` says what came of it.\n")
}
