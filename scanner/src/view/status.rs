//! Whether anything is open that should not be, and how good that knowledge is.

use std::collections::{BTreeMap, BTreeSet};

use deadlight_shared::{FindingStatus, Name};
use jiff::{SignedDuration, Timestamp, Unit};
use serde::Serialize;

use crate::config::Config;
use crate::store::{Contact, Coverage, State, Swept};

/// The schema that a [`Status`] is written in.
const SCHEMA: &str = "deadlight.status/v1";

/// What somebody wants to know who looks for two minutes.
#[derive(Debug, Serialize)]
pub struct Status {
    schema: &'static str,
    /// Findings that are open, or not shown to be anything else.
    pub open: usize,
    /// Findings that an agent has closed, and nobody has proven closed.
    pub unproven: usize,
    /// Findings that are proven closed.
    pub closed: usize,
    /// Findings that the allowlist covers by now.
    pub allowed: usize,
    /// The last full sweep.
    pub sweep: Option<LastSweep>,
    /// Nodes that nobody looks after, or that are not swept yet by who does so now. Only where several scanners share them.
    pub unswept: BTreeSet<Name>,
    /// How it last went with each agent.
    pub agents: BTreeMap<Name, Contact>,
}

/// The last full sweep of this vantage point.
#[derive(Debug, Serialize)]
pub struct LastSweep {
    /// What it counted.
    #[serde(flatten)]
    pub swept: Swept,
    /// Whether it saw everything.
    pub complete: bool,
    /// Whether the next one is overdue.
    pub late: bool,
    /// For how many seconds it has been over.
    #[serde(skip)]
    pub age: SignedDuration,
}

/// The answer in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing unexpected is open.
    Fine,
    /// Something is.
    Exposed,
    /// That is not known well enough.
    Unsure,
}

impl Status {
    /// Sums up `state`, as far as `coverage` says that it is known.
    pub fn new(state: &State, coverage: Coverage, config: &Config, now: Timestamp) -> Self {
        let Coverage { last, mut unswept } = coverage;
        let known = config.names();
        unswept.retain(|node| known.contains(node));
        let count = |is: fn(FindingStatus) -> bool| state.findings.iter().filter(|finding| is(finding.status)).count();
        let sweep = last.map(|swept| {
            let age = now.duration_since(swept.finished);
            let late = age.unsigned_abs() > 2 * config.every;
            let age = age.round(Unit::Second).unwrap_or(age);
            LastSweep { complete: swept.is_complete(), late, age, swept }
        });
        Self {
            schema: SCHEMA,
            open: count(FindingStatus::is_open),
            unproven: count(|status| status == FindingStatus::Enforced),
            closed: count(|status| status == FindingStatus::Resolved),
            allowed: count(|status| status == FindingStatus::Accepted),
            sweep,
            unswept,
            agents: state.contacts.clone(),
        }
    }

    /// The answer in one word.
    pub fn verdict(&self) -> Verdict {
        let is_known =
            self.unswept.is_empty() && self.sweep.as_ref().is_some_and(|sweep| sweep.complete && !sweep.late);
        match (self.open, self.unproven) {
            (0, 0) if is_known => Verdict::Fine,
            (0, _) => Verdict::Unsure,
            _ => Verdict::Exposed,
        }
    }

    /// Which nodes nobody vouches for, in words; none where all are swept.
    pub fn doubt(&self) -> Option<String> {
        let unswept: Vec<&str> = self.unswept.iter().map(Name::as_str).collect();
        (!unswept.is_empty()).then(|| format!("not swept yet by whoever looks after it now: {}", unswept.join(", ")))
    }

    /// The answer in one sentence.
    pub fn sentence(&self) -> String {
        match (self.verdict(), self.open) {
            (Verdict::Fine, _) => "Nothing unexpected is open.".to_owned(),
            (Verdict::Exposed, 1) => "Open and not allowed: 1 port.".to_owned(),
            (Verdict::Exposed, open) => format!("Open and not allowed: {open} ports."),
            (Verdict::Unsure, _) => "Nothing unexpected is known to be open, and not everything is known.".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assess::first_seen;
    use crate::round::Ending;
    use crate::sweep::Tally;
    use deadlight_shared::{Finding, FindingId};

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    fn swept(ending: Ending) -> Swept {
        let tally = Tally::default();
        Swept { started: at(0), finished: at(1), interrupted: false, milliseconds: 0, scope: None, tally, ending }
    }

    fn config() -> Config {
        let text = "[vantage]\nid = \"office-a\"\n[[node]]\nname = \"n1\"\naddresses = [\"192.0.2.1\"]";
        Config::parse(text, "scanner.toml".as_ref(), jiff::civil::date(2026, 11, 29)).unwrap()
    }

    fn verdict(statuses: &[FindingStatus], last: Option<Swept>, now: Timestamp) -> Verdict {
        let (node, address, port) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap(), "80/tcp".parse().unwrap());
        let first = first_seen(&FindingId::of(&node, address, port), node, address, port, at(0));
        let findings = statuses.iter().map(|status| Finding { status: *status, ..first.clone() }).collect();
        let coverage = Coverage { last, ..Coverage::default() };
        Status::new(&State { findings, ..State::default() }, coverage, &config(), now).verdict()
    }

    #[test]
    fn a_node_that_nobody_has_swept_is_not_known() {
        let verdict = |unswept: &str| {
            let unswept = BTreeSet::from([unswept.parse().unwrap()]);
            let coverage = Coverage { last: Some(swept(Ending::default())), unswept };
            Status::new(&State::default(), coverage, &config(), at(2)).verdict()
        };
        assert_eq!([verdict("n1"), verdict("n2-of-another-configuration")], [Verdict::Unsure, Verdict::Fine]);
    }

    #[test]
    fn an_old_or_incomplete_sweep_says_nothing() {
        assert_eq!(verdict(&[], None, at(2)), Verdict::Unsure);
        assert_eq!(verdict(&[], Some(swept(Ending::default())), at(2)), Verdict::Fine);
        assert_eq!(verdict(&[], Some(swept(Ending::default())), at(31)), Verdict::Fine);
        assert_eq!(verdict(&[], Some(swept(Ending::default())), at(32)), Verdict::Unsure);
        let unknown = Ending { unknown: 1, ..Ending::default() };
        assert_eq!(verdict(&[], Some(swept(unknown)), at(2)), Verdict::Unsure);
        let interrupted = Swept { interrupted: true, ..swept(Ending::default()) };
        assert_eq!(verdict(&[], Some(interrupted), at(2)), Verdict::Unsure);
    }

    #[test]
    fn an_age_is_told_in_seconds() {
        let now = at(1) + SignedDuration::from_millis(61_499);
        let coverage = Coverage { last: Some(swept(Ending::default())), ..Coverage::default() };
        let status = Status::new(&State::default(), coverage, &config(), now);
        assert_eq!(format!("{:#}", status.sweep.unwrap().age), "1m 1s");
    }

    #[test]
    fn what_the_findings_amount_to() {
        use FindingStatus::{Accepted, Enforced, Failed, Observed, Open, Refused, Reopened, Reported, Resolved};
        let verdict = |statuses: &[FindingStatus]| verdict(statuses, Some(swept(Ending::default())), at(2));
        assert_eq!(verdict(&[Resolved, Accepted]), Verdict::Fine);
        assert_eq!(verdict(&[Resolved, Enforced]), Verdict::Unsure);
        for status in [Failed, Observed, Open, Refused, Reopened, Reported] {
            assert_eq!(verdict(&[Enforced, status, Resolved]), Verdict::Exposed, "{status}");
        }
    }
}
