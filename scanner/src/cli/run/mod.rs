//! `run`: sweep, assess, order, prove, over and over.

mod daemon;
mod part;
mod round;
mod second;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use deadlight_shared::hint;
use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use super::check::{self, today};
use super::past::hinted;
use super::{Exit, Failure};
use crate::round::Ending;
use crate::store::Database;
use daemon::Scanner;

/// After the last round, for alerts.
const CARRIED: Duration = Duration::from_secs(60);

pub(super) const HELP: &str = "\
Signals:
  SIGHUP           reads the configuration again (one with errors is refused, and the old one goes on), and sweeps
  SIGTERM, SIGINT  end it

Exit status:
  0  with --once: nothing unexpected is open, or all of it is proven closed; else: stopped by a signal
  1  with --once: an unexpected port is still open (no agent, agent not reached, not closed, refused)
  2  usage, configuration or run-time error
  3  with --once: incomplete: something could not be asked, or is closed by the agent but not proven,
     or the vantage point is blind (and no unexpected port is known to be open)";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: check::ConfigFile,
    /// One full loop, then exit
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let checked = check::everything(&arguments.file.config, today(Timestamp::now()))?;
    // What is wrong with the configuration is said before anything is made.
    let database = Database::open_alone(&checked.config.store, &checked.config.vantage).await.map_err(hinted)?;
    let database = Arc::new(database);
    let lease = checked.config.lease;
    let mut scanner = Scanner::new(checked, Arc::clone(&database)).await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let work = async {
        match arguments.once {
            true => scanner.once().await,
            false => scanner.forever(&arguments.file.config).await,
        }
    };
    let work = async {
        tokio::select! {
            result = work => result,
            never = part::keep(&database, lease) => match never {},
        }
    };
    // Wherever the work is dropped, the state on disk is whole, and orders repeat what they mean.
    let stopped = tokio::select! {
        result = work => {
            let carried = tokio::select! {
                carried = scanner.finish(CARRIED) => carried,
                _ = terminate.recv() => false,
                _ = interrupt.recv() => false,
            };
            if !carried {
                tracing::error!("not everybody was told in time; `run` goes on with it when it begins");
            }
            end(&database).await;
            return result;
        }
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    notify(&[NotifyState::Stopping]);
    end(&database).await;
    tracing::info!(signal = stopped, "stopped");
    match arguments.once {
        true => Err(format!("stopped by {stopped} before the loop was complete").into()),
        false => Ok(Exit::Fine),
    }
}

/// Others take our nodes over at once.
async fn end(database: &Database) {
    if let Err(error) = database.give_leases().await {
        tracing::warn!("our nodes are taken over when the lease ends: {}", hint::line(&error));
    }
    database.close().await;
}

/// Says how things are to systemd, where it has started us.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd does not hear us");
    }
}

/// `elsewhere` is the number of nodes that others look after.
fn exit(ending: &Ending, elsewhere: usize) -> Exit {
    match (ending.open, ending.is_complete() && elsewhere == 0) {
        (0, true) => Exit::Fine,
        (0, false) => Exit::Incomplete,
        _ => Exit::Exposed,
    }
}
