//! What a round makes known as it goes, to whoever listens: the story on standard output, and alerts.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;

use deadlight_shared::wire::Report;
use deadlight_shared::{Finding, Name, Port};

use super::Ending;
use crate::assess::Assessment;
use crate::config::Node;
use crate::sweep::{Checked, Rescan, Sweep};

/// One piece of it. Each is told before anything waits for a disk, so that none is lost to a full one.
#[derive(Debug)]
pub enum News<'a> {
    /// What is open now, and what is not seen.
    Swept {
        /// What was seen.
        sweep: &'a Sweep,
        /// What it means.
        assessment: &'a Assessment,
        /// The findings before it.
        before: &'a [Finding],
    },
    /// An agent gave no report.
    Unanswered {
        /// Its node.
        node: &'a Node,
        /// Why.
        error: &'a (dyn Error + 'static),
    },
    /// An agent's report.
    Answered {
        /// What it says.
        report: &'a Report,
        /// What was known before.
        before: &'a Assessment,
    },
    /// What is looked at again.
    Looking(&'a [Rescan]),
    /// An agent's word against the network's. No silence holds it back, and nothing is behind it.
    Contradicted(&'a Contradiction),
    /// What the second look showed.
    Looked {
        /// Each port with its verdict.
        checked: &'a [Checked],
        /// What the guards say they dropped meanwhile, by node and port.
        dropped: &'a BTreeMap<(Name, Port), u64>,
    },
    /// The end.
    Ended(&'a Ending),
}

/// An agent says that a port is closed, and it answered our own probes after that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    /// The agent's node.
    pub node: Name,
    /// The address that answered.
    pub address: IpAddr,
    /// The port.
    pub port: Port,
}
