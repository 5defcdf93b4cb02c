//! Records as rows of tables, and back.

use std::str::FromStr;

use deadlight_shared::wire::{Mode, OrderMark};
use deadlight_shared::{Finding, Name, Port, PortState};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::{Any, AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{AnyPool, AssertSqlSafe, Error, Row as _, Transaction, query};

use super::{Contact, Record, Seen, Silence, State, Swept, Target};
use crate::alert::Alert;

/// Writes `record`; false where it is not ours to write, because another scanner of this name has begun.
pub(super) async fn write(
    transaction: &mut Transaction<'_, Any>,
    vantage: &Name,
    record: &Record,
) -> Result<bool, Error> {
    let written = match record {
        Record::Mark(mark) => query(
            "INSERT INTO scanner (vantage, epoch, sequence) VALUES ($1, $2, $3) \
             ON CONFLICT (vantage) DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence \
             WHERE scanner.epoch <= excluded.epoch",
        )
        .bind(vantage.to_string())
        .bind(number(mark.epoch))
        .bind(number(mark.sequence)),
        Record::Seen { target, seen: Some(seen), at } => {
            change(transaction, vantage, target, Some(seen.state), *at).await?;
            let insert = query(
                "INSERT INTO seen (vantage, address, protocol, port, node, state, evidence, service, since) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (vantage, address, protocol, port) DO UPDATE SET node = excluded.node, \
                 state = excluded.state, evidence = excluded.evidence, service = excluded.service, since = excluded.since",
            );
            bind_target(insert.bind(vantage.to_string()), target)
            .bind(seen.node.to_string())
            .bind(seen.state.as_str())
            .bind(stored(&seen.evidence))
            .bind(seen.service.as_deref().map(stored))
            .bind(seen.since.as_microsecond())
        }
        Record::Seen { target, seen: None, at } => {
            change(transaction, vantage, target, None, *at).await?;
            let delete = query("DELETE FROM seen WHERE vantage = $1 AND address = $2 AND protocol = $3 AND port = $4");
            bind_target(delete.bind(vantage.to_string()), target)
        }
        Record::Finding { finding, at, why } => {
            if let Some(why) = why {
                query(
                    "INSERT INTO event (finding, at, vantage, status, why) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (finding, at, vantage, status) DO NOTHING",
                )
                .bind(finding.id.to_string())
                .bind(at.as_microsecond())
                .bind(vantage.to_string())
                .bind(finding.status.as_str())
                .bind(json(why)?)
                .execute(&mut **transaction)
                .await?;
            }
            query(
                "INSERT INTO finding (id, node, address, protocol, port, status, first_seen, service, vantage) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (vantage, id) DO UPDATE SET status = excluded.status, \
                 first_seen = excluded.first_seen, service = excluded.service",
            )
            .bind(finding.id.to_string())
            .bind(finding.node.to_string())
            .bind(finding.address.to_string())
            .bind(finding.protocol.to_string())
            .bind(i64::from(finding.port.get()))
            .bind(finding.status.as_str())
            .bind(finding.first_seen.as_microsecond())
            .bind(finding.service.as_deref().map(stored))
            .bind(vantage.to_string())
        }
        Record::Contact { node, contact } => query(
            "INSERT INTO contact (vantage, node, asked, answered, mode, trouble, warned) VALUES ($1, $2, $3, $4, $5, $6, $7) \
             ON CONFLICT (vantage, node) DO UPDATE SET asked = excluded.asked, answered = excluded.answered, \
             mode = excluded.mode, trouble = excluded.trouble, warned = excluded.warned",
        )
        .bind(vantage.to_string())
        .bind(node.to_string())
        .bind(contact.asked.as_microsecond())
        .bind(contact.answered.map(Timestamp::as_microsecond))
        .bind(contact.mode.map(|mode| mode.to_string()))
        .bind(contact.trouble.as_deref().map(stored))
        .bind(contact.warned.as_ref().map(json).transpose()?),
        Record::Alert(alert) => {
            let episode = match alert.kind.is_end() {
                true => query("DELETE FROM episode WHERE vantage = $1 AND finding = $2")
                    .bind(vantage.to_string())
                    .bind(alert.finding.id.to_string()),
                false => query(
                    "INSERT INTO episode (vantage, finding, body) VALUES ($1, $2, $3) \
                     ON CONFLICT (vantage, finding) DO UPDATE SET body = excluded.body",
                )
                .bind(vantage.to_string())
                .bind(alert.finding.id.to_string())
                .bind(json(&alert.episode)?),
            };
            episode.execute(&mut **transaction).await?;
            told(vantage, alert)?
        }
        Record::Swept(swept) => query(
            "INSERT INTO sweep (vantage, started, finished, complete, counts) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (vantage, started) DO NOTHING",
        )
        .bind(vantage.to_string())
        .bind(swept.started.as_microsecond())
        .bind(swept.finished.as_microsecond())
        .bind(i64::from(swept.is_complete()))
        .bind(json(swept)?),
    };
    let rows = written.execute(&mut **transaction).await?.rows_affected();
    Ok(rows > 0 || !matches!(record, Record::Mark(_)))
}

/// Adds address, protocol and port, as their columns have them.
pub(super) fn bind_target<'a>(query: Query<'a, Any, AnyArguments>, target: &Target) -> Query<'a, Any, AnyArguments> {
    query
        .bind(target.address.to_string())
        .bind(target.port.protocol.to_string())
        .bind(i64::from(target.port.number.get()))
}

/// What makes the row of `alert`.
pub(super) fn told(vantage: &Name, alert: &Alert) -> Result<Query<'static, Any, AnyArguments>, Error> {
    let row = query(
        "INSERT INTO alert (vantage, number, at, finding, body) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (vantage, number) DO NOTHING",
    );
    Ok(row
        .bind(vantage.to_string())
        .bind(number(alert.number))
        .bind(alert.at.as_microsecond())
        .bind(alert.finding.id.to_string())
        .bind(json(alert)?))
}

async fn change(
    transaction: &mut Transaction<'_, Any>,
    vantage: &Name,
    target: &Target,
    state: Option<PortState>,
    at: Timestamp,
) -> Result<(), Error> {
    let change = query(
        "INSERT INTO change (vantage, at, address, protocol, port, state) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (vantage, at, address, protocol, port) DO NOTHING",
    );
    let change = bind_target(change.bind(vantage.to_string()).bind(at.as_microsecond()), target)
        .bind(state.map(PortState::as_str));
    change.execute(&mut **transaction).await.map(drop)
}

/// Whose memory is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// What the vantage point has itself.
    Own,
    /// Of each node that of whoever looks after it.
    Everybody,
}

impl Whose {
    /// The rows of `table`, where $1 is the vantage point.
    fn rows(self, table: &str) -> String {
        match self {
            Self::Own => format!("{table} WHERE vantage = $1"),
            Self::Everybody => format!("{table} LEFT JOIN lease USING (node) WHERE vantage = COALESCE(memory, $1)"),
        }
    }
}

/// How things stand for `vantage`.
pub(super) async fn load(pool: &AnyPool, vantage: &Name, whose: Whose) -> Result<State, Error> {
    let vantage = vantage.to_string();
    let mut state = State::default();
    let mark = query("SELECT epoch, sequence FROM scanner WHERE vantage = $1").bind(&vantage);
    if let Some(row) = mark.fetch_optional(pool).await? {
        let (epoch, sequence) = (unsigned(&row, "epoch")?, unsigned(&row, "sequence")?);
        state.mark = OrderMark { epoch, sequence };
    }
    let findings = format!(
        "SELECT id, node, address, protocol, port, status, first_seen, service FROM {} \
         ORDER BY first_seen, node, address, protocol, port",
        whose.rows("finding")
    );
    let findings = query(AssertSqlSafe(findings));
    state.findings = findings.bind(&vantage).fetch_all(pool).await?.iter().map(finding).collect::<Result<_, _>>()?;
    let seen = format!(
        "SELECT address, protocol, port, node, state, evidence, service, seen.since FROM {}",
        whose.rows("seen")
    );
    for row in query(AssertSqlSafe(seen)).bind(&vantage).fetch_all(pool).await? {
        let seen = Seen {
            node: parsed(&row, "node")?,
            state: word(&row, "state")?,
            evidence: row.try_get("evidence")?,
            service: row.try_get("service")?,
            since: time(&row, "since")?,
        };
        state.seen.insert(target(&row)?, seen);
    }
    let contacts = format!("SELECT node, asked, answered, mode, trouble, warned FROM {}", whose.rows("contact"));
    for row in query(AssertSqlSafe(contacts)).bind(&vantage).fetch_all(pool).await? {
        let (mode, warned): (Option<String>, Option<String>) = (row.try_get("mode")?, row.try_get("warned")?);
        let contact = Contact {
            asked: time(&row, "asked")?,
            answered: optional_time(&row, "answered")?,
            mode: mode.map(|_| word::<Mode>(&row, "mode")).transpose()?,
            trouble: row.try_get("trouble")?,
            warned: warned.map(|_| from_json(&row, "warned")).transpose()?,
        };
        state.contacts.insert(parsed(&row, "node")?, contact);
    }
    let episodes = query("SELECT finding, body FROM episode WHERE vantage = $1");
    for row in episodes.bind(&vantage).fetch_all(pool).await? {
        state.episodes.insert(parsed(&row, "finding")?, from_json(&row, "body")?);
    }
    // An alert may have been told and not kept.
    for last in [
        "SELECT COALESCE(MAX(number), 0) AS number FROM alert WHERE vantage = $1",
        "SELECT COALESCE(MAX(told), 0) AS number FROM sink WHERE vantage = $1",
    ] {
        let row = query(last).bind(&vantage).fetch_one(pool).await?;
        state.alerts = state.alerts.max(unsigned(&row, "number")?);
    }
    Ok(state)
}

/// How far `sink` has come: the number of the last alert that it was told, and what follows. One that is new begins
/// with what comes from now on.
pub(super) async fn untold(pool: &AnyPool, vantage: &Name, sink: &str) -> Result<Vec<Alert>, Error> {
    let vantage = vantage.to_string();
    query(
        "INSERT INTO sink (vantage, name, told) SELECT $1, $2, COALESCE(MAX(number), 0) FROM alert WHERE vantage = $1 \
         ON CONFLICT (vantage, name) DO NOTHING",
    )
    .bind(&vantage)
    .bind(sink)
    .execute(pool)
    .await?;
    let untold = query(
        "SELECT body FROM alert JOIN sink ON sink.vantage = alert.vantage AND number > told \
         WHERE alert.vantage = $1 AND name = $2 AND heir IS NULL ORDER BY number",
    );
    untold.bind(&vantage).bind(sink).fetch_all(pool).await?.iter().map(|row| from_json(row, "body")).collect()
}

/// The alerts after that of `number`.
pub(super) async fn alerts_after(pool: &AnyPool, vantage: &Name, last: u64) -> Result<Vec<Alert>, Error> {
    let alerts = query("SELECT body FROM alert WHERE vantage = $1 AND number > $2 AND heir IS NULL ORDER BY number");
    let alerts = alerts.bind(vantage.to_string()).bind(number(last)).fetch_all(pool).await?;
    alerts.iter().map(|row| from_json(row, "body")).collect()
}

/// Forgets how far other sinks than `sinks` had come.
pub(super) async fn keep_sinks(pool: &AnyPool, vantage: &Name, sinks: &[&str]) -> Result<(), Error> {
    let vantage = vantage.to_string();
    for row in query("SELECT name FROM sink WHERE vantage = $1").bind(&vantage).fetch_all(pool).await? {
        let name: String = row.try_get("name")?;
        if !sinks.contains(&name.as_str()) {
            query("DELETE FROM sink WHERE vantage = $1 AND name = $2").bind(&vantage).bind(&name).execute(pool).await?;
        }
    }
    Ok(())
}

/// The message to `sink` that is on its way ends with the alert `last`.
pub(super) async fn offer(pool: &AnyPool, vantage: &Name, sink: &str, last: u64) -> Result<(), Error> {
    let offer = query("UPDATE sink SET offered = $1 WHERE vantage = $2 AND name = $3");
    offer.bind(number(last)).bind(vantage.to_string()).bind(sink).execute(pool).await.map(drop)
}

pub(super) async fn offered(pool: &AnyPool, vantage: &Name, sink: &str) -> Result<u64, Error> {
    let offered = query("SELECT offered FROM sink WHERE vantage = $1 AND name = $2 AND offered IS NOT NULL");
    let row = offered.bind(vantage.to_string()).bind(sink).fetch_optional(pool).await?;
    let last = row.map(|row| row.try_get::<i64, _>("offered")).transpose()?;
    Ok(last.and_then(|last| u64::try_from(last).ok()).unwrap_or(0))
}

/// `sink` was told everything up to the alert `told`, or has `trouble`.
pub(super) async fn tell(
    pool: &AnyPool,
    vantage: &Name,
    sink: &str,
    told: u64,
    trouble: Option<&str>,
) -> Result<(), Error> {
    let told = query(
        "INSERT INTO sink (vantage, name, told, trouble) VALUES ($1, $2, $3, $4) ON CONFLICT (vantage, name) \
         DO UPDATE SET told = CASE WHEN excluded.told > sink.told THEN excluded.told ELSE sink.told END, \
         trouble = excluded.trouble",
    )
    .bind(vantage.to_string())
    .bind(sink)
    .bind(number(told))
    .bind(trouble.map(stored));
    told.execute(pool).await.map(drop)
}

/// Somebody wants a full sweep, of all who share the nodes.
pub(super) async fn want_sweep(pool: &AnyPool, vantage: &Name, now: Timestamp) -> Result<(), Error> {
    let want = query(
        "INSERT INTO scanner (vantage, epoch, sequence, wanted) VALUES ($1, 0, 0, $2) \
         ON CONFLICT (vantage) DO UPDATE SET wanted = excluded.wanted",
    );
    want.bind(vantage.to_string()).bind(now.as_microsecond()).execute(pool).await?;
    let others = query("UPDATE scanner SET wanted = $1 WHERE alive IS NOT NULL");
    others.bind(now.as_microsecond()).execute(pool).await.map(drop)
}

pub(super) async fn wanted_sweep(pool: &AnyPool, vantage: &Name) -> Result<Option<Timestamp>, Error> {
    let wanted = query("SELECT wanted FROM scanner WHERE vantage = $1 AND wanted IS NOT NULL");
    let row = wanted.bind(vantage.to_string()).fetch_optional(pool).await?;
    row.map(|row| time(&row, "wanted")).transpose()
}

pub(super) async fn take_wanted_sweep(pool: &AnyPool, vantage: &Name) -> Result<(), Error> {
    let take = query("UPDATE scanner SET wanted = NULL WHERE vantage = $1 AND wanted IS NOT NULL");
    take.bind(vantage.to_string()).execute(pool).await.map(drop)
}

/// Begins a silence and ends those of the same finding that hold.
pub(super) async fn silence(pool: &AnyPool, silence: &Silence) -> Result<(), Error> {
    let mut transaction = pool.begin().await?;
    query("UPDATE silence SET ends = $1 WHERE finding = $2 AND ends > $1")
        .bind(silence.begun.as_microsecond())
        .bind(silence.finding.to_string())
        .execute(&mut *transaction)
        .await?;
    query("INSERT INTO silence (finding, begun, ends, author, comment) VALUES ($1, $2, $3, $4, $5)")
        .bind(silence.finding.to_string())
        .bind(silence.begun.as_microsecond())
        .bind(silence.ends.as_microsecond())
        .bind(stored(&silence.author))
        .bind(stored(&silence.comment))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

/// Forgets what happened before `then`.
pub(super) async fn forget(pool: &AnyPool, then: Timestamp) -> Result<(), Error> {
    for statement in [
        "DELETE FROM sweep WHERE started < $1",
        "DELETE FROM change WHERE at < $1",
        "DELETE FROM silence WHERE ends < $1",
        // What somebody has not been told of yet is kept, and the last one for its number.
        "DELETE FROM alert WHERE at < $1 AND number < COALESCE( \
         (SELECT MIN(told) FROM sink WHERE sink.vantage = alert.vantage), \
         (SELECT MAX(number) FROM alert AS latest WHERE latest.vantage = alert.vantage))",
        "DELETE FROM event WHERE at < $1",
    ] {
        query(statement).bind(then.as_microsecond()).execute(pool).await?;
    }
    Ok(())
}

pub(super) fn finding(row: &AnyRow) -> Result<Finding, Error> {
    let Port { protocol, number } = port(row)?;
    Ok(Finding {
        id: parsed(row, "id")?,
        node: parsed(row, "node")?,
        address: parsed(row, "address")?,
        port: number,
        protocol,
        status: word(row, "status")?,
        first_seen: time(row, "first_seen")?,
        service: row.try_get("service")?,
    })
}

pub(super) fn swept(row: &AnyRow) -> Result<Swept, Error> {
    from_json(row, "counts")
}

pub(super) fn target(row: &AnyRow) -> Result<Target, Error> {
    Ok(Target { address: parsed(row, "address")?, port: port(row)? })
}

fn port(row: &AnyRow) -> Result<Port, Error> {
    let (number, protocol): (i64, String) = (row.try_get("port")?, row.try_get("protocol")?);
    format!("{number}/{protocol}").parse().map_err(|error| undecodable("port", error))
}

pub(super) fn time(row: &AnyRow, column: &str) -> Result<Timestamp, Error> {
    Timestamp::from_microsecond(row.try_get(column)?).map_err(|error| undecodable(column, error))
}

fn optional_time(row: &AnyRow, column: &str) -> Result<Option<Timestamp>, Error> {
    let microseconds: Option<i64> = row.try_get(column)?;
    microseconds.map(|_| time(row, column)).transpose()
}

pub(super) fn unsigned(row: &AnyRow, column: &str) -> Result<u64, Error> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|error| undecodable(column, error))
}

/// A text that says itself what it is.
pub(super) fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &AnyRow,
    column: &str,
) -> Result<T, Error> {
    row.try_get::<String, _>(column)?.parse().map_err(|error| undecodable(column, error))
}

/// One of the words that a type has.
pub(super) fn word<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<T, Error> {
    let text: String = row.try_get(column)?;
    serde_json::from_value(text.into()).map_err(|error| undecodable(column, error))
}

pub(super) fn from_json<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<T, Error> {
    serde_json::from_str(&row.try_get::<String, _>(column)?).map_err(|error| undecodable(column, error))
}

pub(super) fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map(|text| stored(&text)).map_err(|error| Error::Encode(error.into()))
}

/// PostgreSQL has no text with a NUL in it.
fn stored(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Epochs are seconds, and sequences are counted up from 0.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn undecodable(column: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ColumnDecode { index: column.to_owned(), source: Box::new(source) }
}
