//! What a scanner remembers: in memory to decide by, in a database to outlive it.

mod bound;
mod database;
mod leases;
mod location;
mod looks;
mod past;
mod record;
mod rows;

pub use database::{Database, DatabaseError};
pub use leases::Part;
pub use location::{Location, LocationError, is_near};
pub use looks::{Bell, Look};
pub use past::{Coverage, Event, Past, Silence, SinkState};
pub use record::{Contact, Record, Seen, State, Swept, Target, Warned, Why, liars};

use std::collections::BTreeMap;

use deadlight_shared::wire::OrderMark;
use deadlight_shared::{Finding, FindingId, Name};
use jiff::Timestamp;

use crate::alert::{self, Alert, Episode, Kind};
use crate::round::Scope;
use crate::sweep::Sweep;

/// More than this is not kept back for a database that cannot be written: then how things stand is kept, and alerts, and
/// not what else happened.
const MOST_UNSAVED: usize = 100_000;

/// What a scanner knows, and what of it the database does not have yet. Pure: who writes to the database takes
/// [`unsaved`](Self::unsaved) and says so by [`saved`](Self::saved).
#[derive(Debug)]
pub struct Store {
    state: State,
    unsaved: Vec<Record>,
    untold: Vec<Alert>,
    /// What nobody wants to hear of, and until when.
    silenced: BTreeMap<FindingId, Timestamp>,
}

impl Store {
    /// Goes on from `state` with a new epoch, as [`begin_epoch`](Self::begin_epoch) has it.
    pub fn new(state: State, now: Timestamp) -> Self {
        let mut store = Self { state, unsaved: Vec::new(), untold: Vec::new(), silenced: BTreeMap::new() };
        store.begin_epoch(now);
        store
    }

    /// Begins a new epoch: `now` in seconds, higher than every epoch before, also than those that a restored database
    /// has forgotten. Also where an agent has a later order than ours: the clock by which this epoch began may
    /// have been put right since.
    pub fn begin_epoch(&mut self, now: Timestamp) {
        let now = u64::try_from(now.as_second()).unwrap_or(0);
        self.mark(OrderMark { epoch: now.max(self.state.mark.epoch.saturating_add(1)), sequence: 0 });
    }

    /// The mark of the next order, which is not sent before the database has this. Where it cannot be written,
    /// the next epoch begins at a later second, so that a crash never gives two orders the same mark.
    pub fn next_mark(&mut self) -> OrderMark {
        let OrderMark { epoch, sequence } = self.state.mark;
        self.mark(OrderMark { epoch, sequence: sequence + 1 });
        self.state.mark
    }

    /// The findings of all sweeps so far.
    pub fn findings(&self) -> &[Finding] {
        &self.state.findings
    }

    /// Everything that is known.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Replaces the findings. `why` is asked about each whose status is new.
    pub fn keep(&mut self, findings: &[Finding], at: Timestamp, why: impl Fn(&Finding) -> Option<Why>) {
        let known: BTreeMap<&FindingId, &Finding> = self.state.findings.iter().map(|f| (&f.id, f)).collect();
        let record = |finding: &Finding| {
            let before = known.get(&finding.id);
            let is_news = before.is_none_or(|before| before.status != finding.status);
            let why = if is_news { why(finding) } else { None };
            (before != Some(&finding)).then(|| Record::Finding { finding: finding.clone(), at, why })
        };
        let records: Vec<Record> = findings.iter().filter_map(record).collect();
        self.state.findings = findings.to_vec();
        self.put(records.iter().cloned());
        let whys: BTreeMap<&FindingId, &Why> = records
            .iter()
            .filter_map(|record| match record {
                Record::Finding { finding, why, .. } => Some((&finding.id, why.as_ref()?)),
                _ => None,
            })
            .collect();
        for finding in findings {
            self.tell(finding, whys.get(&finding.id).copied(), at);
        }
    }

    /// Goes on from `state`, which is what the database has by now: our part of the nodes is another. Nothing may be
    /// unsaved.
    pub fn go_on(&mut self, state: State) {
        let mark = self.state.mark.max(state.mark);
        let alerts = self.state.alerts.max(state.alerts);
        self.state = State { mark, alerts, ..state };
    }

    /// These silences hold, and no others.
    pub fn silence(&mut self, silences: &[Silence]) {
        self.silenced.clear();
        for silence in silences {
            let ends = self.silenced.entry(silence.finding.clone()).or_insert(silence.ends);
            *ends = silence.ends.max(*ends);
        }
    }

    /// What has to be told since this was last asked. It may be told whether it could be saved or not.
    pub fn take_alerts(&mut self) -> Vec<Alert> {
        std::mem::take(&mut self.untold)
    }

    /// Remembers what `sweep`, which looked at `scope`, saw differently from the sweeps before.
    pub fn see(&mut self, sweep: &Sweep, scope: Scope) {
        let records = self.state.differences(sweep, scope);
        records.iter().for_each(|record| self.state.apply(record));
        self.put(records);
    }

    /// Remembers how it went with an agent; what there is nothing new of stays.
    pub fn contact(&mut self, node: &Name, contact: Contact) {
        let before = self.state.contacts.get(node);
        let contact = Contact {
            answered: contact.answered.or(before.and_then(|before| before.answered)),
            mode: contact.mode.or(before.and_then(|before| before.mode)),
            warned: contact.warned.or_else(|| before.and_then(|before| before.warned.clone())),
            ..contact
        };
        let record = Record::Contact { node: node.clone(), contact };
        self.state.apply(&record);
        self.put([record]);
    }

    /// Remembers that a round with a full sweep is over.
    pub fn end(&mut self, swept: Swept) {
        self.put([Record::Swept(swept)]);
    }

    /// What the database does not have yet, in order.
    pub fn unsaved(&self) -> &[Record] {
        &self.unsaved
    }

    /// The database has everything.
    pub fn saved(&mut self) {
        self.unsaved.clear();
    }

    fn tell(&mut self, finding: &Finding, why: Option<&Why>, at: Timestamp) {
        let episode = self.state.episodes.get(&finding.id);
        let is_silenced = self.silenced.get(&finding.id).is_some_and(|ends| at < *ends);
        let news = alert::news(finding, episode, why, at).filter(|kind| !is_silenced || !kind.can_be_silenced());
        let Some(kind) = news else { return };
        let number = self.state.alerts + 1;
        let unclosed = match kind {
            Kind::Unclosed | Kind::Contradicted => Some(finding.status),
            _ => episode.and_then(|episode| episode.unclosed),
        };
        let contradicted = match kind {
            Kind::Contradicted => Some(at),
            _ => episode.and_then(|episode| episode.contradicted),
        };
        let begun = episode.cloned().unwrap_or_else(|| Episode::new(number, at));
        let episode = Episode { told: at, unclosed, contradicted, ..begun };
        let alert = Alert { number, at, kind, episode, finding: finding.clone(), why: why.cloned() };
        let record = Record::Alert(alert.clone());
        self.state.apply(&record);
        self.untold.push(alert);
        self.put([record]);
    }

    fn mark(&mut self, mark: OrderMark) {
        self.state.mark = mark;
        match self.unsaved.last_mut() {
            Some(Record::Mark(last)) => *last = mark,
            _ => self.put([Record::Mark(mark)]),
        }
    }

    fn put(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            // With the mark goes the question whether another scanner of our name has begun.
            if self.unsaved.is_empty() && !matches!(record, Record::Mark(_)) {
                self.unsaved.push(Record::Mark(self.state.mark));
            }
            self.unsaved.push(record);
        }
        if self.unsaved.len() > MOST_UNSAVED {
            // What somebody has to be told stands for itself.
            let mut alerts = std::mem::take(&mut self.unsaved);
            alerts.retain(|record| matches!(record, Record::Alert(_)));
            self.unsaved = self.state.records().into_iter().chain(alerts).collect();
        }
    }
}

#[cfg(test)]
mod tests;
