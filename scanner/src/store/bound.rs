//! How large the database may become.

use jiff::Timestamp;
use sqlx::{Row as _, query};

use super::database::{LONGEST, within};
use super::{Database, DatabaseError, Location};

/// Each time a quarter of what is remembered is forgotten: after so many times it is next to nothing.
const TIMES: usize = 40;

impl Database {
    /// Forgets what happened longest ago until a file has no more than `bytes` in use; how things stand is kept. Since when
    /// everything is remembered, where something had to go. What is on a server is not bounded by us.
    pub async fn keep_within(&self, bytes: u64, now: Timestamp) -> Result<Option<Timestamp>, DatabaseError> {
        let mut since = None;
        for _ in 0..TIMES {
            if self.used().await? <= bytes {
                break;
            }
            let oldest = self.oldest().await?.unwrap_or(now).max(since.unwrap_or(Timestamp::MIN));
            let then = oldest + now.duration_since(oldest) / 4;
            self.forget(then).await?;
            since = Some(then);
        }
        Ok(since)
    }

    /// Bytes of a file that are in use; pages that became free are used again.
    async fn used(&self) -> Result<u64, DatabaseError> {
        if let Location::Server(_) = self.location() {
            return Ok(0);
        }
        let used = "SELECT (page_count - freelist_count) * page_size AS used \
                    FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()";
        let row = within(LONGEST, query(used).fetch_one(self.pool())).await.map_err(|source| self.unread(source))?;
        super::rows::unsigned(&row, "used").map_err(|source| self.unread(source))
    }

    /// When the first thing happened that is remembered.
    async fn oldest(&self) -> Result<Option<Timestamp>, DatabaseError> {
        let oldest = "SELECT MIN(at) AS at FROM (SELECT MIN(at) AS at FROM event UNION ALL SELECT MIN(at) FROM change \
                      UNION ALL SELECT MIN(at) FROM alert UNION ALL SELECT MIN(started) FROM sweep) AS oldest";
        let row = within(LONGEST, query(oldest).fetch_one(self.pool())).await.map_err(|source| self.unread(source))?;
        let at: Option<i64> = row.try_get("at").map_err(|source| self.unread(source))?;
        Ok(at.and_then(|at| Timestamp::from_microsecond(at).ok()))
    }
}
