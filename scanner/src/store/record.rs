//! What is remembered: how things stand, and what happened. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use deadlight_shared::text::printable;
use deadlight_shared::wire::{Mode, OrderMark, Outcome};
use deadlight_shared::{Finding, FindingId, Name, Observation, Port, PortState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::alert::{Alert, Episode};
use crate::round::{Ending, Scope};
use crate::sweep::{MOST_OPEN, Sweep, Tally};

/// Longest text of others that is shown.
const SHOWN: usize = 300;

/// What a scanner has to know to go on where it stopped: the sum of all records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The mark of the last order.
    pub mark: OrderMark,
    /// The findings of all sweeps.
    pub findings: Vec<Finding>,
    /// What the last sweeps saw at each target that is worth a word.
    pub seen: BTreeMap<Target, Seen>,
    /// When agents were last heard.
    pub contacts: BTreeMap<Name, Contact>,
    /// Exposures that somebody was told of, and not of their end.
    pub episodes: BTreeMap<FindingId, Episode>,
    /// The number of the last alert.
    pub alerts: u64,
}

/// A port at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Port,
}

/// What was seen at a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Node of the address.
    pub node: Name,
    /// The verdict.
    pub state: PortState,
    /// What it rested on when it began; not escaped.
    pub evidence: String,
    /// What is behind the port, as far as it said so; not escaped.
    pub service: Option<String>,
    /// Since which sweep.
    pub since: Timestamp,
}

/// How it went with an agent when it was last sent an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contact {
    /// When it was last sent one.
    pub asked: Timestamp,
    /// When it last answered with a report.
    pub answered: Option<Timestamp>,
    /// Its mode, as it last said.
    pub mode: Option<Mode>,
    /// Why there was no report; not escaped.
    pub trouble: Option<String>,
    /// The last warnings that it had, such as of rules that somebody had changed.
    pub warned: Option<Warned>,
}

/// Warnings of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warned {
    /// When they came.
    pub at: Timestamp,
    /// What they say; not escaped.
    pub said: Vec<String>,
}

/// How a sweep and the rest of its round went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// When it began.
    pub started: Timestamp,
    /// When its round was over.
    pub finished: Timestamp,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// How long the sweep alone took; 0 in records of older versions.
    #[serde(default)]
    pub milliseconds: u64,
    /// What it was to look at, as [`crate::config::Config::scope`] has it; none in records of older versions.
    #[serde(default)]
    pub scope: Option<String>,
    /// What it counted.
    pub tally: Tally,
    /// How its round ended.
    pub ending: Ending,
}

/// Why a finding has the status that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "lowercase")]
pub enum Why {
    /// A sweep saw it.
    Sweep {
        /// What the verdict rested on; not escaped.
        evidence: String,
    },
    /// An entry of the allowlist covers it.
    Allowlist,
    /// Its agent said so.
    Agent(Box<Outcome>),
    /// Our own proof, in words.
    Proof {
        /// What was shown.
        evidence: String,
    },
    /// It answered after its agent had closed it.
    Contradiction,
    /// It answered when it was looked at again.
    Rescan,
    /// Its node, or its address, is not in the configuration any more: nobody looks at it.
    Unlisted,
}

/// One thing to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An order of this mark may have been sent.
    Mark(OrderMark),
    /// A target is seen differently from now on; with `None` there is nothing of note any more.
    Seen {
        /// The target.
        target: Target,
        /// What is seen.
        seen: Option<Seen>,
        /// Since when.
        at: Timestamp,
    },
    /// A finding is new or changed.
    Finding {
        /// The finding, as it is now.
        finding: Finding,
        /// Since when.
        at: Timestamp,
        /// Why its status changed; `None` where it did not.
        why: Option<Why>,
    },
    /// An agent was sent an order.
    Contact {
        /// Its node.
        node: Name,
        /// How it went.
        contact: Contact,
    },
    /// Somebody has to be told.
    Alert(Alert),
    /// A round is over.
    Swept(Swept),
}

impl fmt::Display for Why {
    /// One line, escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sweep { evidence } => write!(f, "a sweep saw it ({})", printable(evidence, SHOWN)),
            Self::Allowlist => f.write_str("the allowlist covers it"),
            Self::Agent(outcome) => write!(f, "its agent: {} ({})", printable(&outcome.reason, SHOWN), outcome.cause),
            Self::Proof { evidence } => write!(f, "proven: {}", printable(evidence, SHOWN)),
            Self::Contradiction => f.write_str("it answered after its agent had closed it"),
            Self::Unlisted => f.write_str("not looked at any more: it is not in the configuration"),
            Self::Rescan => f.write_str("it answered when it was looked at again"),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            mark: OrderMark { epoch: 0, sequence: 0 },
            findings: Vec::new(),
            seen: BTreeMap::new(),
            contacts: BTreeMap::new(),
            episodes: BTreeMap::new(),
            alerts: 0,
        }
    }
}

impl State {
    /// Takes over what `record` says.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Mark(mark) => self.mark = *mark,
            Record::Seen { target, seen: Some(seen), .. } => {
                self.seen.insert(*target, seen.clone());
            }
            Record::Seen { target, seen: None, .. } => {
                self.seen.remove(target);
            }
            Record::Finding { finding, .. } => match self.findings.iter_mut().find(|known| known.id == finding.id) {
                Some(known) => known.clone_from(finding),
                None => self.findings.push(finding.clone()),
            },
            Record::Contact { node, contact } => {
                self.contacts.insert(node.clone(), contact.clone());
            }
            Record::Alert(alert) => {
                self.alerts = alert.number;
                match alert.kind.is_end() {
                    true => self.episodes.remove(&alert.finding.id),
                    false => self.episodes.insert(alert.finding.id.clone(), alert.episode.clone()),
                };
            }
            Record::Swept(_) => {}
        }
    }

    /// The records that make this state out of nothing, without what happened.
    pub fn records(&self) -> Vec<Record> {
        let at = Timestamp::UNIX_EPOCH;
        let findings = self.findings.iter().map(|finding| Record::Finding { finding: finding.clone(), at, why: None });
        let seen = self.seen.iter().map(|(target, seen)| Record::Seen {
            target: *target,
            seen: Some(seen.clone()),
            at: seen.since,
        });
        let contacts = self
            .contacts
            .iter()
            .map(|(node, contact)| Record::Contact { node: node.clone(), contact: contact.clone() });
        [Record::Mark(self.mark)].into_iter().chain(findings).chain(seen).chain(contacts).collect()
    }

    /// What `sweep`, which looked at `scope`, saw differently from the sweeps before.
    pub fn differences(&self, sweep: &Sweep, scope: Scope) -> Vec<Record> {
        let at = sweep.started;
        let now: BTreeMap<Target, &Observation> =
            sweep.observations.iter().map(|seen| (Target::of(seen), seen)).collect();
        let changed = now.iter().filter_map(|(target, observation)| {
            let seen = Seen {
                node: observation.node.clone(),
                state: observation.state,
                evidence: observation.evidence.to_string(),
                service: observation.service.clone(),
                since: at,
            };
            let known = self.seen.get(target);
            let is_same = known.is_some_and(|known| {
                (known.state, &known.service, &known.node) == (seen.state, &seen.service, &seen.node)
            });
            (!is_same).then_some(Record::Seen { target: *target, seen: Some(seen), at })
        });
        let unasked = |target: &Target| {
            sweep.unasked.iter().any(|not| not.address == target.address && not.ports.contains(target.port))
        };
        // A quick sweep keeps what it asks of interest, and has not asked the rest.
        let is_all = scope == Scope::Full;
        let gone = self.seen.keys().filter(|target| is_all && !now.contains_key(target) && !unasked(target));
        let gone = gone.map(|target| Record::Seen { target: *target, seen: None, at });
        changed.chain(gone).collect()
    }
}

impl State {
    /// Forgets what it knows of nodes that `is_elsewhere`: another scanner looks after them.
    pub fn leave(&mut self, is_elsewhere: impl Fn(&Name) -> bool) {
        self.findings.retain(|finding| !is_elsewhere(&finding.node));
        self.seen.retain(|_, seen| !is_elsewhere(&seen.node));
        self.contacts.retain(|node, _| !is_elsewhere(node));
        let known: BTreeSet<&FindingId> = self.findings.iter().map(|finding| &finding.id).collect();
        self.episodes.retain(|finding, _| known.contains(finding));
    }

    /// Addresses at which more ports were seen open than one host has, with their number: what answers there is not
    /// believed.
    pub fn liars(&self) -> BTreeMap<IpAddr, usize> {
        liars(self.seen.iter().map(|(target, seen)| (target, seen.state)))
    }
}

/// The same, of anything that was seen.
pub fn liars<'a>(seen: impl Iterator<Item = (&'a Target, PortState)>) -> BTreeMap<IpAddr, usize> {
    let mut open = BTreeMap::new();
    for (target, _) in seen.filter(|(_, state)| *state == PortState::Open) {
        *open.entry(target.address).or_insert(0) += 1;
    }
    open.retain(|_, count| *count > MOST_OPEN);
    open
}

impl Swept {
    /// One at `now` in which there was nothing to do.
    pub fn nothing(now: Timestamp) -> Self {
        let (tally, ending) = (Tally::default(), Ending::default());
        Self { started: now, finished: now, interrupted: false, milliseconds: 0, scope: None, tally, ending }
    }

    /// Whether everything was seen. What became of it since, findings say.
    pub fn is_complete(&self) -> bool {
        !self.interrupted && self.ending.saw_everything()
    }
}

impl Target {
    /// The target of an observation.
    pub fn of(seen: &Observation) -> Self {
        Self { address: seen.address, port: seen.port }
    }
}
