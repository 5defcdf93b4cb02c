//! The nodes that this scanner looks after, where it shares them with others.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use deadlight_shared::{Name, hint};

use super::daemon::{Scanner, ticks};
use super::round::save;
use crate::config::Config;
use crate::store::{Database, DatabaseError, Part};

/// A lease is written for so much less than what is promised: whoever takes over has to notice first that it has ended.
const PROMISED: f64 = 2.0 / 3.0;
/// Looks at the leases, and writes that we live, so many times within what is promised.
const LOOKS: u32 = 6;

impl Scanner {
    /// Takes our part of the nodes; whether it is another than before. While the database cannot be asked we go on with what
    /// we had: better twice than not at all.
    pub(super) async fn share(&mut self) -> bool {
        let Some(before) = &self.part else { return false };
        save(&mut self.store, &self.database, &self.courier).await;
        if !self.store.unsaved().is_empty() {
            return false;
        }
        let names = self.config.names();
        let shared = self.database.share(&names, written(self.config.lease)).await;
        let was_unsure = std::mem::replace(&mut self.is_unsure, shared.is_err());
        let part = match shared {
            Ok(part) => part,
            Err(error) => {
                // Said once: the database may be away for hours, and is asked every few seconds.
                if !was_unsure {
                    tracing::warn!("which nodes are ours is not known: {}", hint::line(&error));
                }
                return false;
            }
        };
        let is_another = part.is_new || part.nodes != before.nodes || part.elsewhere != before.elsewhere;
        let remembered = match is_another || was_unsure {
            true => self.remember(&part.elsewhere).await,
            false => Ok(()),
        };
        match remembered {
            Ok(()) => {
                if was_unsure {
                    tracing::info!("the database says again which nodes are ours");
                }
                if is_another {
                    tracing::info!(nodes = part.nodes.len(), of = names.len(), "this is our part of the nodes");
                }
                self.part = Some(part);
            }
            Err(error) => {
                tracing::warn!("what is known of our nodes is asked again: {}", hint::line(&error));
                (self.part, self.is_unsure) = (Some(Part::default()), true);
            }
        }
        is_another
    }

    /// Takes over what is known of our nodes, and the alerts that we owe since they are ours.
    async fn remember(&mut self, elsewhere: &BTreeSet<Name>) -> Result<(), DatabaseError> {
        let mut state = self.database.load().await?;
        let owed = self.database.alerts_after(self.store.state().alerts).await?;
        state.leave(|node| elsewhere.contains(node));
        self.store.go_on(state);
        self.courier.take(&owed);
        Ok(())
    }

    /// The configuration of our part alone.
    pub(super) fn ours(&self) -> Config {
        match &self.part {
            None => self.config.clone(),
            Some(part) => self.config.of(&part.nodes),
        }
    }
}

/// How often our part is looked at.
pub(super) fn pause(lease: Duration) -> Duration {
    lease / LOOKS
}

/// Keeps what we hold for as long as this runs: also during a long sweep.
pub(super) async fn keep(database: &Database, lease: Duration) -> Infallible {
    let mut ticks = ticks(pause(lease));
    loop {
        ticks.tick().await;
        if let Err(error) = database.keep_leases(written(lease)).await {
            tracing::debug!("our leases are not renewed: {}", hint::line(&error));
        }
    }
}

fn written(lease: Duration) -> Duration {
    lease.mul_f64(PROMISED)
}
