//! Ports that one scanner asks another to look at, by way of a PostgreSQL server: rows that one of them takes, and a bell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use deadlight_shared::Name;
use sqlx::any::AnyRow;
use sqlx::postgres::PgListener;
use sqlx::{AssertSqlSafe, Error, query};
use tokio::time::timeout;

use super::database::{LONGEST, PATIENCE, within};
use super::leases::{NO_STANDSTILL, NOW, microseconds};
use super::{Database, DatabaseError, Target, rows};
use crate::prove::Second;

/// The channel on which it is told that there is something new.
const BELL: &str = "deadlight_look";
/// What was asked longer ago nobody waits for any more.
const FRESH: Duration = Duration::from_secs(60);
/// So many at a time, so that several scanners can help.
const AT_ONCE: i64 = 256;

/// A port that another scanner wants us to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The vantage point of the other.
    pub asker: Name,
    /// The node, by its name.
    pub node: Name,
    /// The address and the port.
    pub target: Target,
}

/// Rings when there is something to look at, or something was seen.
#[derive(Debug)]
pub struct Bell(PgListener);

impl Bell {
    /// Waits until it rings, or for `limit` at the longest.
    pub async fn rung(&mut self, limit: Duration) {
        // A connection that is lost comes back by itself, and what it has missed is asked for after the limit.
        if let Ok(Err(error)) = timeout(limit, self.0.recv()).await {
            tracing::debug!(%error, "the database cannot ring");
            tokio::time::sleep(limit).await;
        }
    }
}

impl Database {
    /// Begins to hear of looks; only where it is shared.
    pub async fn bell(&self) -> Result<Bell, DatabaseError> {
        let listen = async {
            let mut listener = PgListener::connect(&self.location().url()).await?;
            listener.listen(BELL).await?;
            Ok(Bell(listener))
        };
        within(PATIENCE, listen).await.map_err(|source| self.unread(source))
    }

    /// Asks others to look at `targets`; what was asked before is forgotten. Whether there is anybody else.
    pub async fn ask_others(&self, targets: &BTreeMap<Target, Name>) -> Result<bool, DatabaseError> {
        let ask = async {
            let vantage = self.vantage().to_string();
            let mut transaction = self.pool().begin().await?;
            query(NO_STANDSTILL).execute(&mut *transaction).await?;
            query("DELETE FROM look WHERE asker = $1").bind(&vantage).execute(&mut *transaction).await?;
            for (target, node) in targets {
                let look = format!(
                    "INSERT INTO look (asker, address, protocol, port, node, asked) VALUES ($1, $2, $3, $4, $5, {NOW})"
                );
                let look = rows::bind_target(query(AssertSqlSafe(look)).bind(&vantage), target).bind(node.to_string());
                look.execute(&mut *transaction).await?;
            }
            ring(&mut transaction).await?;
            let others = format!("SELECT COUNT(*) AS others FROM scanner WHERE vantage <> $1 AND alive > {NOW}");
            let others = query(AssertSqlSafe(others)).bind(&vantage).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(rows::unsigned(&others, "others")? > 0)
        };
        within(LONGEST, ask).await.map_err(|source| self.unwritten(source))
    }

    /// What others saw so far.
    pub async fn seconds(&self) -> Result<BTreeMap<Target, Second>, DatabaseError> {
        let seen = query("SELECT address, protocol, port, verdict FROM look WHERE asker = $1 AND verdict IS NOT NULL")
            .bind(self.vantage().to_string());
        let read = |row: &AnyRow| Ok((rows::target(row)?, rows::from_json(row, "verdict")?));
        let rows = within(LONGEST, seen.fetch_all(self.pool())).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(|source| self.unread(source))
    }

    /// Takes what others want looked at, of the addresses that we know; nobody else looks at those.
    pub async fn take_looks(&self, known: &BTreeSet<(&Name, IpAddr)>) -> Result<Vec<Look>, DatabaseError> {
        let take = async {
            let vantage = self.vantage().to_string();
            let mut transaction = self.pool().begin().await?;
            query(NO_STANDSTILL).execute(&mut *transaction).await?;
            let wanted = format!(
                "SELECT asker, node, address, protocol, port FROM look \
                 WHERE asker <> $1 AND taker IS NULL AND asked > {NOW} - $2 LIMIT $3 FOR UPDATE SKIP LOCKED"
            );
            let wanted = query(AssertSqlSafe(wanted))
                .bind(&vantage)
                .bind(microseconds(FRESH))
                .bind(AT_ONCE)
                .fetch_all(&mut *transaction)
                .await?;
            let mut looks = wanted.iter().map(look).collect::<Result<Vec<_>, _>>()?;
            looks.retain(|look| known.contains(&(&look.node, look.target.address)));
            for Look { asker, target, .. } in &looks {
                let take = query(
                    "UPDATE look SET taker = $1 WHERE asker = $2 AND address = $3 AND protocol = $4 AND port = $5",
                );
                let take = rows::bind_target(take.bind(&vantage).bind(asker.to_string()), target);
                take.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            Ok(looks)
        };
        within(LONGEST, take).await.map_err(|source| self.unwritten(source))
    }

    /// Says what we saw.
    pub async fn answer_looks(&self, seen: &[(Look, Second)]) -> Result<(), DatabaseError> {
        let answer = async {
            let mut transaction = self.pool().begin().await?;
            for (Look { asker, target, .. }, second) in seen {
                let answer = query(
                    "UPDATE look SET verdict = $1 \
                     WHERE asker = $2 AND address = $3 AND protocol = $4 AND port = $5 AND taker = $6",
                );
                let answer = rows::bind_target(answer.bind(rows::json(second)?).bind(asker.to_string()), target);
                answer.bind(self.vantage().to_string()).execute(&mut *transaction).await?;
            }
            ring(&mut transaction).await?;
            transaction.commit().await
        };
        within(LONGEST, answer).await.map_err(|source| self.unwritten(source))
    }
}

async fn ring(transaction: &mut sqlx::Transaction<'_, sqlx::Any>) -> Result<(), Error> {
    query("SELECT pg_notify($1, '')").bind(BELL).execute(&mut **transaction).await.map(drop)
}

fn look(row: &AnyRow) -> Result<Look, Error> {
    Ok(Look { asker: rows::parsed(row, "asker")?, node: rows::parsed(row, "node")?, target: rows::target(row)? })
}
