//! The report: what the agent did about each finding of an order.

use std::fmt;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use crate::finding::FindingId;
use crate::name::Name;
use crate::port::{Port, Protocol};

/// Whether the agent acts. A local setting, never set over the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Says what it would do and changes nothing.
    #[default]
    Observe,
    /// Closes ports.
    Enforce,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        })
    }
}

/// What became of one finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeStatus {
    /// Rules are in the kernel and were read back.
    Enforced,
    /// The agent is in observe mode.
    Observed,
    /// The port is protected.
    Refused,
    /// Will be tried again: a lock is held, or the budget is used up.
    Pending,
    /// Could not be done, or could not be read back.
    Failed,
}

impl OutcomeStatus {
    /// The word as it is shown and as it crosses the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Observed => "observed",
            Self::Refused => "refused",
            Self::Pending => "pending",
            Self::Failed => "failed",
        }
    }
}

/// One finding's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The finding.
    pub finding: FindingId,
    /// Protocol of its port.
    pub protocol: Protocol,
    /// Its port number.
    pub port: NonZeroU16,
    /// What became of it.
    pub status: OutcomeStatus,
    /// Why, in one sentence.
    pub reason: String,
    /// Why the port was open.
    pub cause: Cause,
    /// The rules for this port, as they stand or as they would stand.
    pub rules: Vec<String>,
    /// Packets the guard dropped for this port so far; 0 also where the guard is of iptables, which does not count.
    pub dropped: u64,
}

impl Outcome {
    /// The port with its protocol.
    pub fn port(&self) -> Port {
        Port { protocol: self.protocol, number: self.port }
    }
}

/// Which order a report answers; later ones have a higher (epoch, sequence).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OrderMark {
    /// The order's epoch.
    pub epoch: u64,
    /// The order's sequence number.
    pub sequence: u64,
}

/// The answer to `PUT /v1/exposures`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`Report::SCHEMA`].
    pub schema: String,
    /// The node that reports.
    pub node: Name,
    /// Its mode.
    pub mode: Mode,
    /// The order that was acted on. Older than the one sent, when that was a replay.
    pub order: OrderMark,
    /// One outcome for each finding of that order.
    pub outcomes: Vec<Outcome>,
    /// What an operator must know besides, such as "state not persisted".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Report {
    /// Schema name of this version.
    pub const SCHEMA: &str = "deadlight.report/v1";
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("golden/report.json");

    #[test]
    fn the_golden_report_reads_and_writes_back() {
        let report: Report = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(report.outcomes[0].cause.to_string(), "swarm_ingress: service stats, image lab:1");
        assert_eq!(format!("{}\n", serde_json::to_string_pretty(&report).unwrap()), GOLDEN);
    }

    #[test]
    fn marks_order_by_epoch_first() {
        let mark = |epoch, sequence| OrderMark { epoch, sequence };
        assert!(mark(2, 1) > mark(1, 900));
        assert!(mark(2, 2) > mark(2, 1));
    }
}
