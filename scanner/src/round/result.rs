//! How a round ended.

use std::net::IpAddr;

use deadlight_shared::{FindingStatus, Name};
use serde::{Deserialize, Serialize};

use crate::assess::Assessment;
use crate::config::Config;
use crate::sweep::Sweep;

/// Counts over the findings of a round, and what it could not see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Unexpected ports that are open, or not shown to be anything else.
    pub open: usize,
    /// Closed by an agent or gone by themselves, without a proof.
    pub unproven: usize,
    /// Proven closed, in this round or an earlier one.
    pub closed: usize,
    /// Targets that could not be asked.
    pub unknown: u64,
    /// Addresses whose control port did not answer.
    pub blind: Vec<(Name, IpAddr)>,
    /// Addresses that answer where nothing can be: what is open there is not known.
    pub liars: usize,
}

/// Sums up a round over the nodes of `config`.
pub fn ending(config: &Config, sweep: &Sweep, assessment: &Assessment) -> Ending {
    let targets = config.targets();
    let mut ending = Ending {
        unknown: sweep.tally.unknown,
        blind: blind(config, sweep),
        liars: sweep.liars.len(),
        ..Ending::default()
    };
    for finding in assessment.findings.iter().filter(|finding| targets.contains(&(&finding.node, finding.address))) {
        match finding.status {
            FindingStatus::Accepted => {}
            FindingStatus::Resolved => ending.closed += 1,
            FindingStatus::Enforced => ending.unproven += 1,
            _ if assessment.exposed.contains(&finding.id) => ending.open += 1,
            _ => ending.unproven += 1,
        }
    }
    ending
}

impl Ending {
    /// Whether everything was seen and everything that should be is proven closed.
    pub fn is_complete(&self) -> bool {
        self.unproven == 0 && self.saw_everything()
    }

    /// Whether nothing was kept from our eyes.
    pub fn saw_everything(&self) -> bool {
        self.unknown == 0 && self.blind.is_empty() && self.liars == 0
    }
}

/// Addresses that were asked and not heard, on nodes with a port that must answer.
fn blind(config: &Config, sweep: &Sweep) -> Vec<(Name, IpAddr)> {
    let silent = |address: &&IpAddr| {
        !sweep.heard.contains(address) && !sweep.unasked.iter().any(|unasked| unasked.address == **address)
    };
    let nodes = config.nodes.iter().filter(|node| node.control_port().is_some());
    nodes.flat_map(|node| node.addresses.iter().filter(silent).map(|address| (node.name.clone(), *address))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_not_seen_clearly_makes_a_round_incomplete() {
        assert!(Ending::default().is_complete());
        let address = "192.0.2.1".parse().unwrap();
        for doubtful in [
            Ending { unproven: 1, ..Ending::default() },
            Ending { unknown: 1, ..Ending::default() },
            Ending { blind: vec![("n1".parse().unwrap(), address)], ..Ending::default() },
            Ending { liars: 1, ..Ending::default() },
        ] {
            assert!(!doubtful.is_complete(), "{doubtful:?}");
        }
    }
}
