//! SYNs to one port in both families, a hundred a second each.

use std::time::Duration;

use anyhow::Result;
use deadlight_tests::{
    lab::{Family, Wire},
    syn_watch::{SynWatch, Tried},
    wait::wait_for,
};

/// Docker tells nobody when a port is ready.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) struct Probe([SynWatch; 2]);

impl Probe {
    /// Probes a port that is open, and waits until that is seen.
    pub(crate) fn start(wire: &Wire, port: u16) -> Result<Self> {
        let watch = |family: Family| SynWatch::start(&wire.inet, family.scanner(), family.node(port));
        let probe = Self([watch(Family::V4)?, watch(Family::V6)?]);
        probe.see_open()?;
        Ok(probe)
    }

    /// Waits for an answer in each family; returns the counters of the wait.
    pub(crate) fn see_open(&self) -> Result<Tried> {
        let marks = self.0.each_ref().map(SynWatch::so_far);
        wait_for("answers of an open port", PATIENCE, || {
            let tried = [self.0[0].since(marks[0]), self.0[1].since(marks[1])];
            if tried.iter().all(|tried| tried.answered > 0) { Ok(total(tried)) } else { Err(format!("{tried:?}")) }
        })
    }

    /// Waits until `count` more SYNs are out in each family.
    pub(crate) fn observe(&self, count: u64) -> Result<()> {
        self.0.iter().try_for_each(|watch| watch.observe(count).map(drop))
    }

    /// The counters of both families since the start.
    pub(crate) fn so_far(&self) -> Tried {
        total(self.0.each_ref().map(SynWatch::so_far))
    }

    /// The counters of both families since `mark`.
    pub(crate) fn since(&self, mark: Tried) -> Tried {
        let now = self.so_far();
        Tried { sent: now.sent - mark.sent, answered: now.answered - mark.answered }
    }
}

fn total([v4, v6]: [Tried; 2]) -> Tried {
    Tried { sent: v4.sent + v6.sent, answered: v4.answered + v6.answered }
}
