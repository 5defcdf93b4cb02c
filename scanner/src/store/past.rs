//! What happened, as it is asked for later.

use std::collections::{BTreeMap, BTreeSet};

use deadlight_shared::{Finding, FindingId, FindingStatus, Name, PortState};
use jiff::Timestamp;
use serde::Serialize;
use sqlx::any::{Any, AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Row as _, query};

use super::database::{LONGEST, within};
use super::rows;
use super::{Database, DatabaseError, Swept, Target, Why};
use crate::view::Turn;

/// A change of a finding's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// The vantage point that saw it.
    pub vantage: Name,
    /// The new status.
    pub status: FindingStatus,
    /// Why.
    pub why: Why,
}

/// Nobody wants to hear of a finding for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Silence {
    /// The finding.
    pub finding: FindingId,
    /// Since when.
    pub begun: Timestamp,
    /// Until when.
    pub ends: Timestamp,
    /// Who wants so; not escaped.
    pub author: String,
    /// Why; not escaped.
    pub comment: String,
}

/// How far a place that is told has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SinkState {
    /// What it is called.
    pub name: String,
    /// Alerts that it has not taken yet.
    pub waiting: u64,
    /// Why, where the last message to it failed; not escaped.
    pub trouble: Option<String>,
}

/// How much is known of how things stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The last sweep whose round came to its end; where several scanners share the nodes, the one that says least: it did not
    /// see everything, or is the oldest.
    pub last: Option<Swept>,
    /// Nodes that nobody looks after, or that are not swept yet by who does so now; none where there is one scanner.
    pub unswept: BTreeSet<Name>,
}

/// Reads what happened.
#[derive(Debug)]
pub struct Past<'a>(pub &'a Database);

impl Past<'_> {
    /// How much is known at `now`, by `vantage` or by all who share the nodes with it.
    pub async fn coverage(&self, vantage: &Name, now: Timestamp) -> Result<Coverage, DatabaseError> {
        // Asked by who swept: asked the other way, a server looks at each of the 35,000 sweeps of a year.
        let last = query(
            "SELECT counts FROM (SELECT holder FROM lease WHERE until > $2 \
             UNION SELECT $1 WHERE NOT EXISTS (SELECT 1 FROM lease)) AS sweeper \
             JOIN sweep ON vantage = holder AND started = \
             (SELECT MAX(started) FROM sweep AS latest WHERE latest.vantage = holder)",
        );
        let last: Vec<Swept> = self.all(last.bind(vantage.to_string()).bind(now.as_microsecond()), rows::swept).await?;
        let last = last.into_iter().min_by_key(|swept| (swept.is_complete(), swept.finished));
        let unswept = query(
            "SELECT node FROM lease WHERE holder IS NULL OR until < $1 OR since > \
             COALESCE((SELECT MAX(started) FROM sweep WHERE sweep.vantage = lease.holder), 0)",
        );
        let unswept = self.all(unswept.bind(now.as_microsecond()), |row| rows::parsed(row, "node")).await?;
        Ok(Coverage { last, unswept })
    }

    /// The last `most` full sweeps of `vantage`, the last one first.
    pub async fn sweeps(&self, vantage: &Name, most: u32) -> Result<Vec<Swept>, DatabaseError> {
        let sweeps = query("SELECT counts FROM sweep WHERE vantage = $1 ORDER BY started DESC LIMIT $2");
        self.all(sweeps.bind(vantage.to_string()).bind(i64::from(most)), rows::swept).await
    }

    /// What had been seen by `at`, whoever had the node then, at each target that is worth a word.
    pub async fn states(&self, at: Timestamp) -> Result<BTreeMap<Target, PortState>, DatabaseError> {
        // Of what has been the same for long, the change may be forgotten.
        let states = query(
            "SELECT address, protocol, port, state FROM (SELECT address, protocol, port, state, \
             ROW_NUMBER() OVER (PARTITION BY address, protocol, port ORDER BY at DESC) AS place FROM \
             (SELECT address, protocol, port, state, at FROM change WHERE at <= $1 \
             UNION SELECT address, protocol, port, state, since FROM seen WHERE since <= $1) AS word) AS latest \
             WHERE place = 1 AND state IS NOT NULL",
        );
        let states = states.bind(at.as_microsecond());
        self.all(states, |row| Ok((rows::target(row)?, rows::word(row, "state")?))).await
    }

    /// The findings that changed since `from`.
    pub async fn turned(&self, from: Timestamp) -> Result<BTreeSet<FindingId>, DatabaseError> {
        let turned = query("SELECT DISTINCT finding FROM event WHERE at >= $1");
        self.all(turned.bind(from.as_microsecond()), |row| rows::parsed(row, "finding")).await
    }

    /// The last `most` changes of a finding, in order.
    pub async fn turns(&self, finding: &FindingId, most: u32) -> Result<Vec<Turn>, DatabaseError> {
        let turns = query("SELECT at, status FROM event WHERE finding = $1 ORDER BY at DESC LIMIT $2");
        let turns = turns.bind(finding.to_string()).bind(i64::from(most));
        let mut turns: Vec<_> = self.all(turns, turn).await?;
        turns.reverse();
        Ok(turns)
    }

    /// The places that alerts of `vantage` go to.
    pub async fn sinks(&self, vantage: &Name) -> Result<Vec<SinkState>, DatabaseError> {
        let sinks = query(
            "SELECT name, trouble, (SELECT COUNT(*) FROM alert \
             WHERE alert.vantage = sink.vantage AND number > told AND heir IS NULL) \
             AS waiting FROM sink WHERE vantage = $1 ORDER BY name",
        );
        self.all(sinks.bind(vantage.to_string()), sink).await
    }

    /// The whole story of a finding.
    pub async fn story(&self, finding: &FindingId) -> Result<Vec<Event>, DatabaseError> {
        let story = query("SELECT at, vantage, status, why FROM event WHERE finding = $1 ORDER BY at, status");
        self.all(story.bind(finding.to_string()), event).await
    }

    /// The silences that hold at `now`, those that end last first.
    pub async fn silences(&self, now: Timestamp) -> Result<Vec<Silence>, DatabaseError> {
        let silences = query(
            "SELECT finding, begun, ends, author, comment FROM silence WHERE begun <= $1 AND ends > $1 \
             ORDER BY ends DESC, finding, begun",
        );
        self.all(silences.bind(now.as_microsecond()), silence).await
    }

    /// What happened to all findings between `from` and `to`, in order.
    pub async fn events(&self, from: Timestamp, to: Timestamp) -> Result<Vec<(Finding, Event)>, DatabaseError> {
        let events = query(
            "SELECT finding.id, node, address, protocol, port, finding.status AS now, first_seen, service, \
             at, event.vantage, event.status, why FROM event \
             JOIN finding ON finding.id = event.finding AND finding.vantage = \
             COALESCE((SELECT memory FROM lease WHERE lease.node = finding.node), event.vantage) \
             WHERE at >= $1 AND at <= $2 ORDER BY at, node, address, protocol, port",
        );
        let events = events.bind(from.as_microsecond()).bind(to.as_microsecond());
        self.all(events, |row| Ok((rows::finding(row)?, event(row)?))).await
    }

    /// Every row that `query` gives, as `read` reads it.
    async fn all<T, C: FromIterator<T>>(
        &self,
        query: Query<'_, Any, AnyArguments>,
        read: impl Fn(&AnyRow) -> Result<T, sqlx::Error>,
    ) -> Result<C, DatabaseError> {
        let rows = within(LONGEST, query.fetch_all(self.0.pool())).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(|source| self.0.unread(source))
    }
}

fn turn(row: &AnyRow) -> Result<Turn, sqlx::Error> {
    Ok(Turn { at: rows::time(row, "at")?, status: rows::word(row, "status")? })
}

fn sink(row: &AnyRow) -> Result<SinkState, sqlx::Error> {
    let (name, trouble) = (row.try_get("name")?, row.try_get("trouble")?);
    Ok(SinkState { name, trouble, waiting: rows::unsigned(row, "waiting")? })
}

fn silence(row: &AnyRow) -> Result<Silence, sqlx::Error> {
    Ok(Silence {
        finding: rows::parsed(row, "finding")?,
        begun: rows::time(row, "begun")?,
        ends: rows::time(row, "ends")?,
        author: row.try_get("author")?,
        comment: row.try_get("comment")?,
    })
}

fn event(row: &AnyRow) -> Result<Event, sqlx::Error> {
    Ok(Event {
        at: rows::time(row, "at")?,
        vantage: rows::parsed(row, "vantage")?,
        status: rows::word(row, "status")?,
        why: rows::from_json(row, "why")?,
    })
}
