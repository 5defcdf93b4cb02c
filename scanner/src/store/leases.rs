//! Who looks after which node, where several scanners work with one PostgreSQL server. It is the only coordinator: its locks,
//! and its clock. A file of SQLite has one scanner, which looks after all.

use std::collections::BTreeSet;
use std::time::Duration;

use deadlight_shared::Name;
use deadlight_shared::wire::MAX_PEERS;
use jiff::SignedDuration;
use sqlx::any::{Any, AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Error, Row as _, Transaction, query};

use super::database::{LONGEST, PATIENCE, within};
use super::{Database, DatabaseError, Location, rows};
use crate::alert::Alert;
use crate::lease::{Lease, Share, share};

/// Microseconds since 1970, by the server's clock.
pub(super) const NOW: &str = "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT";
/// In the order in which everybody locks them, so that nobody waits for each other.
const OURS: &str = "SELECT node FROM lease WHERE holder = $1 ORDER BY node FOR UPDATE";
/// A scanner that is gone in the middle of it keeps nobody waiting for longer.
pub(super) const NO_STANDSTILL: &str = "SET LOCAL idle_in_transaction_session_timeout = '10s'";

/// What a scanner looks after from now on.
#[derive(Debug, Default)]
pub struct Part {
    /// The nodes.
    pub nodes: BTreeSet<Name>,
    /// The other scanners that share them, or did.
    pub peers: Vec<Name>,
    /// Nodes that others look after, or may.
    pub elsewhere: BTreeSet<Name>,
    /// Whether some of ours were not ours before.
    pub is_new: bool,
}

impl Database {
    /// Whether several scanners can work with it: a server, and no file.
    pub fn is_shared(&self) -> bool {
        matches!(self.location(), Location::Server(_))
    }

    /// Says that this scanner lives, and takes its part of `nodes` for `lease`, with the memory of whoever had it before.
    /// Everything must be written before; only where it is shared.
    pub async fn share(&self, nodes: &BTreeSet<Name>, lease: Duration) -> Result<Part, DatabaseError> {
        within(LONGEST, self.shared(nodes, lease)).await.map_err(|source| self.unwritten(source))
    }

    /// Makes what this scanner holds last for `lease` from now on.
    pub async fn keep_leases(&self, lease: Duration) -> Result<(), DatabaseError> {
        if !self.is_shared() {
            return Ok(());
        }
        let keep = async {
            self.alive(lease).execute(self.pool()).await?;
            let keep = format!("UPDATE lease SET until = {NOW} + $2 WHERE until > {NOW} AND node IN ({OURS})");
            query(AssertSqlSafe(keep))
                .bind(self.vantage().to_string())
                .bind(microseconds(lease))
                .execute(self.pool())
                .await
        };
        within(PATIENCE, keep).await.map(drop).map_err(|source| self.unwritten(source))
    }

    /// Gives everything back at once, so that nobody waits for a scanner that has ended.
    pub async fn give_leases(&self) -> Result<(), DatabaseError> {
        if !self.is_shared() {
            return Ok(());
        }
        let give = async {
            let vantage = self.vantage().to_string();
            let end = format!("UPDATE scanner SET alive = {NOW} WHERE vantage = $1");
            query(AssertSqlSafe(end)).bind(&vantage).execute(self.pool()).await?;
            let give = format!("UPDATE lease SET holder = NULL, until = {NOW}, wanted = NULL WHERE node IN ({OURS})");
            query(AssertSqlSafe(give)).bind(&vantage).execute(self.pool()).await
        };
        within(PATIENCE, give).await.map(drop).map_err(|source| self.unwritten(source))
    }

    async fn shared(&self, nodes: &BTreeSet<Name>, lease: Duration) -> Result<Part, Error> {
        let vantage = self.vantage();
        let mut transaction = self.pool().begin().await?;
        query(NO_STANDSTILL).execute(&mut *transaction).await?;
        self.alive(lease).execute(&mut *transaction).await?;
        let mut leases = leases(&mut transaction).await?;
        let known: BTreeSet<Name> = leases.iter().map(|lease| lease.node.clone()).collect();
        if !nodes.is_subset(&known) {
            for node in nodes.difference(&known) {
                let new = format!(
                    "INSERT INTO lease (node, memory, since, until) VALUES ($1, $2, {NOW}, {NOW}) \
                     ON CONFLICT (node) DO NOTHING"
                );
                let new = query(AssertSqlSafe(new)).bind(node.to_string()).bind(vantage.to_string());
                new.execute(&mut *transaction).await?;
            }
            leases = self::leases(&mut transaction).await?;
        }
        let (leases, others): (Vec<_>, Vec<_>) = leases.into_iter().partition(|lease| nodes.contains(&lease.node));
        let scanners = format!("SELECT COUNT(*) AS scanners FROM scanner WHERE alive > {NOW}");
        let scanners = query(AssertSqlSafe(scanners)).fetch_one(&mut *transaction).await?;
        let scanners = usize::try_from(rows::unsigned(&scanners, "scanners")?).unwrap_or(usize::MAX);
        let patience = SignedDuration::try_from(lease).unwrap_or(SignedDuration::MAX);
        let Share { hold, mut give, want } = share(vantage, &leases, scanners, patience);
        let renewed = format!("UPDATE lease SET until = {NOW} + $2 WHERE holder = $1");
        let renewed = query(AssertSqlSafe(renewed)).bind(vantage.to_string()).bind(microseconds(lease));
        renewed.execute(&mut *transaction).await?;
        let is_ours = |lease: &&Lease| lease.holder.as_ref() == Some(vantage);
        // They stand in our configuration no more, and may in another's.
        give.extend(others.iter().filter(is_ours).map(|lease| lease.node.clone()));
        let ours: BTreeSet<&Name> = leases.iter().filter(is_ours).map(|lease| &lease.node).collect();
        let taken: Vec<&Name> = hold.iter().filter(|node| !ours.contains(node)).collect();
        for node in &taken {
            take(&mut transaction, vantage, node, lease).await?;
        }
        for node in &give {
            let give = format!("UPDATE lease SET holder = NULL, until = {NOW} WHERE node = $1");
            query(AssertSqlSafe(give)).bind(node.to_string()).execute(&mut *transaction).await?;
        }
        for node in &want {
            let want = query("UPDATE lease SET wanted = $2 WHERE node = $1");
            want.bind(node.to_string()).bind(vantage.to_string()).execute(&mut *transaction).await?;
        }
        let nodes: BTreeSet<Name> = hold.iter().cloned().collect();
        let mut elsewhere: BTreeSet<Name> = leases.iter().map(|lease| lease.node.clone()).collect();
        for Lease { node, holder, left, .. } in &others {
            if holder.is_some() || *left >= -patience {
                elsewhere.insert(node.clone());
                continue;
            }
            // It stands in nobody's configuration: whoever knows of it may say so.
            query("DELETE FROM lease WHERE node = $1").bind(node.to_string()).execute(&mut *transaction).await?;
        }
        elsewhere.retain(|node| !nodes.contains(node));
        let peers = query(
            "SELECT vantage FROM scanner WHERE vantage <> $1 AND alive IS NOT NULL ORDER BY alive DESC, vantage LIMIT $2",
        );
        let peers = peers.bind(vantage.to_string()).bind(i64::try_from(MAX_PEERS).unwrap_or(i64::MAX));
        let peers = peers.fetch_all(&mut *transaction).await?;
        let peers = peers.iter().map(|row| rows::parsed(row, "vantage")).collect::<Result<_, _>>()?;
        transaction.commit().await?;
        Ok(Part { is_new: !taken.is_empty(), nodes, elsewhere, peers })
    }

    fn alive(&self, lease: Duration) -> Query<'static, Any, AnyArguments> {
        let alive = format!(
            "INSERT INTO scanner (vantage, epoch, sequence, alive) VALUES ($1, 0, 0, {NOW} + $2) \
             ON CONFLICT (vantage) DO UPDATE SET alive = excluded.alive"
        );
        query(AssertSqlSafe(alive)).bind(self.vantage().to_string()).bind(microseconds(lease))
    }
}

/// Looks after `node` from now on, remembers what its last holder did, and owes the alerts that it owed.
async fn take(
    transaction: &mut Transaction<'_, Any>,
    vantage: &Name,
    node: &Name,
    lease: Duration,
) -> Result<(), Error> {
    let (ours, node) = (vantage.to_string(), node.to_string());
    let row = query("SELECT memory FROM lease WHERE node = $1").bind(&node).fetch_one(&mut **transaction).await?;
    let memory: String = row.try_get("memory")?;
    let hold = format!(
        "UPDATE lease SET since = {NOW}, holder = $2, memory = $2, until = {NOW} + $3, wanted = NULL WHERE node = $1"
    );
    query(AssertSqlSafe(hold)).bind(&node).bind(&ours).bind(microseconds(lease)).execute(&mut **transaction).await?;
    if memory == ours {
        return Ok(());
    }
    for statement in [
        // What we knew of it is older.
        "DELETE FROM episode WHERE vantage = $1 AND finding IN (SELECT id FROM finding WHERE node = $2)",
        "DELETE FROM finding WHERE vantage = $1 AND node = $2",
        "DELETE FROM seen WHERE vantage = $1 AND node = $2",
        "DELETE FROM contact WHERE vantage = $1 AND node = $2",
    ] {
        query(statement).bind(&ours).bind(&node).execute(&mut **transaction).await?;
    }
    for statement in [
        // The address may have stood at another node.
        "DELETE FROM seen WHERE vantage = $1 AND EXISTS (SELECT 1 FROM seen AS theirs \
         WHERE theirs.vantage = $3 AND theirs.node = $2 AND theirs.address = seen.address \
         AND theirs.protocol = seen.protocol AND theirs.port = seen.port)",
        "UPDATE episode SET vantage = $1 WHERE vantage = $3 AND finding IN \
         (SELECT id FROM finding WHERE vantage = $3 AND node = $2)",
        "UPDATE finding SET vantage = $1 WHERE vantage = $3 AND node = $2",
        "UPDATE seen SET vantage = $1 WHERE vantage = $3 AND node = $2",
        "UPDATE contact SET vantage = $1 WHERE vantage = $3 AND node = $2",
    ] {
        query(statement).bind(&ours).bind(&node).bind(&memory).execute(&mut **transaction).await?;
    }
    owed(transaction, vantage, &node, &memory).await
}

/// What `memory`, whose scanner has ended, did not bring to everybody of `node` becomes alerts of `vantage`, and is not told by
/// `memory` any more when it comes back. One that lives brings them itself.
async fn owed(transaction: &mut Transaction<'_, Any>, vantage: &Name, node: &str, memory: &str) -> Result<(), Error> {
    let bodies = format!(
        "UPDATE alert SET heir = $3 WHERE vantage = $1 AND heir IS NULL \
         AND finding IN (SELECT id FROM finding WHERE node = $2) \
         AND number > (SELECT MIN(told) FROM sink WHERE vantage = $1) \
         AND NOT EXISTS (SELECT 1 FROM scanner WHERE vantage = $1 AND alive > {NOW}) RETURNING body"
    );
    let bodies = query(AssertSqlSafe(bodies)).bind(memory).bind(node).bind(vantage.to_string());
    let bodies = bodies.fetch_all(&mut **transaction).await?;
    let last = query(
        "SELECT GREATEST((SELECT COALESCE(MAX(number), 0) FROM alert WHERE vantage = $1), \
         (SELECT COALESCE(MAX(told), 0) FROM sink WHERE vantage = $1)) AS number",
    );
    let mut number = rows::unsigned(&last.bind(vantage.to_string()).fetch_one(&mut **transaction).await?, "number")?;
    let mut owed: Vec<Alert> = bodies.iter().map(|row| rows::from_json(row, "body")).collect::<Result<_, _>>()?;
    owed.sort_by_key(|alert| alert.number);
    for alert in owed {
        number += 1;
        rows::told(vantage, &Alert { number, ..alert })?.execute(&mut **transaction).await?;
    }
    Ok(())
}

/// All of them, which nobody else changes until the end of the transaction.
async fn leases(transaction: &mut Transaction<'_, Any>) -> Result<Vec<Lease>, Error> {
    // Always in the same order, so that two scanners do not wait for each other.
    let leases = format!("SELECT node, holder, until - {NOW} AS remaining, wanted FROM lease ORDER BY node FOR UPDATE");
    let rows = query(AssertSqlSafe(leases)).fetch_all(&mut **transaction).await?;
    rows.iter().map(read).collect()
}

fn read(row: &AnyRow) -> Result<Lease, Error> {
    let (holder, wanted): (Option<String>, Option<String>) = (row.try_get("holder")?, row.try_get("wanted")?);
    Ok(Lease {
        node: rows::parsed(row, "node")?,
        holder: holder.map(|_| rows::parsed(row, "holder")).transpose()?,
        left: SignedDuration::from_micros(row.try_get("remaining")?),
        wanted: wanted.map(|_| rows::parsed(row, "wanted")).transpose()?,
    })
}

pub(super) fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
