//! The database: SQLite in a file, or a PostgreSQL server. Both are asked in the same words.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use deadlight_shared::{Name, file};
use jiff::Timestamp;
use sqlx::any::{AnyPoolOptions, install_default_drivers};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AnyConnection, AnyPool, Connection as _, Executor as _, Row as _, SqlSafeStr as _};
use tokio::time::timeout;

use super::rows::{self, Whose};
use super::{Location, Record, Silence, State};
use crate::alert::Alert;

/// For a connection, and for another process that writes.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// At the end.
const CLOSING: Duration = Duration::from_secs(2);
/// For many rows.
pub(super) const LONGEST: Duration = Duration::from_secs(30);

/// The version of the tables that we know.
const VERSION: i64 = 4;
/// How SQLite and PostgreSQL say that a table is not there.
const NO_TABLE: [&str; 2] = ["1", "42P01"];

/// A connection to the database, as one vantage point has it.
#[derive(Debug)]
pub struct Database {
    location: Location,
    pool: AnyPool,
    vantage: Name,
    /// Held as long as a scanner runs.
    _hold: Option<Hold>,
}

/// What keeps other scanners out: of the file, or of the name at the server for as long as this connection lives.
#[derive(Debug)]
#[expect(dead_code, reason = "it is only kept")]
enum Hold {
    File(File),
    Server(Mutex<AnyConnection>),
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// No scanner has run with it.
    #[error("there is no database {location} yet")]
    Absent {
        /// The database.
        location: String,
    },
    /// The file cannot be opened, or made.
    #[error("failed to open the database {location}")]
    File {
        /// The database.
        location: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not there, or does not let us in.
    #[error("failed to open the database {location}")]
    Open {
        /// The database.
        location: String,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
    /// Its tables are of another version of this program.
    #[error("the tables of the database {location} are of version {theirs}, and those of this program of {VERSION}")]
    Version {
        /// The database.
        location: String,
        /// The version of its tables.
        theirs: i64,
    },
    /// Its tables are not what this version can go on from.
    #[error("failed to bring the tables of the database {location} up to date")]
    Tables {
        /// The database.
        location: String,
        /// What is wrong.
        #[source]
        source: MigrateError,
    },
    /// Another scanner works with the same file.
    #[error("another deadlight-scanner works with the database {location}")]
    Busy {
        /// The database.
        location: String,
    },
    /// Another scanner of the same name has begun after us.
    #[error("another deadlight-scanner has begun as vantage point {vantage} with the database {location}")]
    Taken {
        /// The name of both.
        vantage: Name,
        /// The database.
        location: String,
    },
    /// A server has backups of its own.
    #[error("{location} is on a server, which this command does not back up")]
    ServerBackup {
        /// The database.
        location: String,
    },
    /// The copy cannot be made.
    #[error("failed to make the copy {}", copy.display())]
    Copy {
        /// The copy.
        copy: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot be asked.
    #[error("failed to read the database {location}")]
    Read {
        /// The database.
        location: String,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
    /// It cannot be written.
    #[error("failed to write the database {location}")]
    Write {
        /// The database.
        location: String,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
}

impl DatabaseError {
    /// Whether the disk is what fails: it has no room, or cannot be written.
    pub fn is_of_the_disk(&self) -> bool {
        // The primary codes of SQLite: IOERR, FULL and READONLY. PostgreSQL's are of five characters.
        let is_disk = |error: &sqlx::Error| {
            let code = error.as_database_error().and_then(|error| error.code());
            code.filter(|code| code.len() < 5)
                .and_then(|code| code.parse::<u16>().ok())
                .is_some_and(|code| matches!(code & 0xff, 8 | 10 | 13))
        };
        match self {
            Self::File { .. } => true,
            Self::Open { source, .. } | Self::Read { source, .. } | Self::Write { source, .. } => is_disk(source),
            _ => false,
        }
    }
}

impl Database {
    /// Opens it, makes it where it is a file that is not there, and brings its tables up to date.
    pub async fn open(location: &Location, vantage: &Name) -> Result<Self, DatabaseError> {
        if let Location::File(path) = location {
            make_private(path).map_err(|source| DatabaseError::File { location: location.to_string(), source })?;
        }
        let database = Self::connect(location, vantage).await?;
        let unopened = |source| DatabaseError::Open { location: location.to_string(), source };
        if let Location::File(_) = location {
            // Readers keep no writer waiting, and the file remembers that.
            let written = sqlx::query("PRAGMA journal_mode = WAL").execute(&database.pool);
            within(PATIENCE, written).await.map_err(unopened)?;
        }
        migrator()
            .run(&database.pool)
            .await
            .map_err(|source| DatabaseError::Tables { location: location.to_string(), source })?;
        Ok(database)
    }

    /// The same for those who only ask, beside a scanner that may just be starting: they make no file and no table, and leave
    /// those that there are as they are.
    pub async fn open_existing(location: &Location, vantage: &Name) -> Result<Self, DatabaseError> {
        if let Location::File(path) = location {
            match path.try_exists() {
                Ok(true) => {}
                Ok(false) => return Err(DatabaseError::Absent { location: location.to_string() }),
                Err(source) => return Err(DatabaseError::File { location: location.to_string(), source }),
            }
        }
        let database = Self::connect(location, vantage).await?;
        match within(PATIENCE, version(&database.pool)).await {
            Ok(Some(VERSION)) => Ok(database),
            Ok(Some(theirs)) => Err(DatabaseError::Version { location: location.to_string(), theirs }),
            Ok(None) => Err(DatabaseError::Absent { location: location.to_string() }),
            Err(source) => Err(DatabaseError::Open { location: location.to_string(), source }),
        }
    }

    async fn connect(location: &Location, vantage: &Name) -> Result<Self, DatabaseError> {
        install_default_drivers();
        let most = match location {
            Location::File(_) => 1,
            Location::Server(_) => 4,
        };
        let url = location.url();
        let unopened = |source| DatabaseError::Open { location: location.to_string(), source };
        // A pool would try for a while what never works.
        let first = async {
            let mut first = AnyConnection::connect(&url).await?;
            prepare(&mut first).await?;
            first.close().await
        };
        within(PATIENCE, first).await.map_err(unopened)?;
        let pool = AnyPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(PATIENCE)
            .after_connect(|connection, _| Box::pin(prepare(connection)))
            .connect(&url)
            .await
            .map_err(unopened)?;
        Ok(Self { location: location.clone(), pool, vantage: vantage.clone(), _hold: None })
    }

    /// Opens it for the scanner that runs: nobody else may with the same file.
    pub async fn open_alone(location: &Location, vantage: &Name) -> Result<Self, DatabaseError> {
        if let Location::File(path) = location {
            let lock = Hold::File(lock(path, location)?);
            return Ok(Self { _hold: Some(lock), ..Self::open(location, vantage).await? });
        }
        let database = Self::open(location, vantage).await?;
        let unopened = |source| DatabaseError::Open { location: location.to_string(), source };
        let holder = async {
            let mut holder = AnyConnection::connect(&location.url()).await?;
            let held = sqlx::query("SELECT pg_try_advisory_lock(hashtext($1))").bind(format!("deadlight {vantage}"));
            let is_held: bool = held.fetch_one(&mut holder).await?.try_get(0)?;
            Ok((holder, is_held))
        };
        match within(PATIENCE, holder).await.map_err(unopened)? {
            (holder, true) => Ok(Self { _hold: Some(Hold::Server(Mutex::new(holder))), ..database }),
            (_, false) => Err(DatabaseError::Busy { location: location.to_string() }),
        }
    }

    /// How things stand for this vantage point.
    pub async fn load(&self) -> Result<State, DatabaseError> {
        self.load_of(Whose::Own).await
    }

    /// How things stand at all nodes, whichever vantage point looks after them.
    pub async fn load_all(&self) -> Result<State, DatabaseError> {
        self.load_of(Whose::Everybody).await
    }

    async fn load_of(&self, whose: Whose) -> Result<State, DatabaseError> {
        within(LONGEST, rows::load(&self.pool, &self.vantage, whose)).await.map_err(|source| self.unread(source))
    }

    /// Writes `records`, all of them or none.
    pub async fn write(&self, records: &[Record]) -> Result<(), DatabaseError> {
        let write = async {
            let mut transaction = self.pool.begin().await?;
            for record in records {
                if !rows::write(&mut transaction, &self.vantage, record).await? {
                    return Ok(false);
                }
            }
            transaction.commit().await.map(|()| true)
        };
        match within(LONGEST, write).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(DatabaseError::Taken { vantage: self.vantage.clone(), location: self.location.to_string() })
            }
            Err(source) => Err(self.unwritten(source)),
        }
    }

    /// What `sink` has not been told yet, in order. One that is new is told what comes from now on.
    pub async fn untold(&self, sink: &str) -> Result<Vec<Alert>, DatabaseError> {
        within(LONGEST, rows::untold(&self.pool, &self.vantage, sink)).await.map_err(|source| self.unread(source))
    }

    /// Our alerts after that of number `last`.
    pub async fn alerts_after(&self, last: u64) -> Result<Vec<Alert>, DatabaseError> {
        within(LONGEST, rows::alerts_after(&self.pool, &self.vantage, last)).await.map_err(|source| self.unread(source))
    }

    /// There are no other sinks than these: how far others had come is forgotten.
    pub async fn keep_sinks(&self, sinks: &[&str]) -> Result<(), DatabaseError> {
        within(PATIENCE, rows::keep_sinks(&self.pool, &self.vantage, sinks))
            .await
            .map_err(|source| self.unwritten(source))
    }

    /// Remembers, before it is sent, that the message to `sink` ends with the alert of number `last`.
    pub async fn offer(&self, sink: &str, last: u64) -> Result<(), DatabaseError> {
        within(PATIENCE, rows::offer(&self.pool, &self.vantage, sink, last))
            .await
            .map_err(|source| self.unwritten(source))
    }

    /// The last alert in the latest message to `sink`; 0 where there was none.
    pub async fn offered(&self, sink: &str) -> Result<u64, DatabaseError> {
        within(PATIENCE, rows::offered(&self.pool, &self.vantage, sink)).await.map_err(|source| self.unread(source))
    }

    /// Remembers that `sink` was told everything up to the alert of number `told`, and what `trouble` it has.
    pub async fn tell(&self, sink: &str, told: u64, trouble: Option<&str>) -> Result<(), DatabaseError> {
        within(PATIENCE, rows::tell(&self.pool, &self.vantage, sink, told, trouble))
            .await
            .map_err(|source| self.unwritten(source))
    }

    /// Begins a silence. It ends those of the same finding that hold.
    pub async fn silence(&self, silence: &Silence) -> Result<(), DatabaseError> {
        within(PATIENCE, rows::silence(&self.pool, silence)).await.map_err(|source| self.unwritten(source))
    }

    /// Asks the scanner of this vantage point, which may run or not, for a full sweep, and all with which it shares nodes.
    pub async fn want_sweep(&self, now: Timestamp) -> Result<(), DatabaseError> {
        within(PATIENCE, rows::want_sweep(&self.pool, &self.vantage, now))
            .await
            .map_err(|source| self.unwritten(source))
    }

    /// Since when somebody waits for a full sweep.
    pub async fn wanted_sweep(&self) -> Result<Option<Timestamp>, DatabaseError> {
        within(PATIENCE, rows::wanted_sweep(&self.pool, &self.vantage)).await.map_err(|source| self.unread(source))
    }

    /// The sweep that somebody waited for begins.
    pub async fn take_wanted_sweep(&self) -> Result<(), DatabaseError> {
        within(PATIENCE, rows::take_wanted_sweep(&self.pool, &self.vantage))
            .await
            .map_err(|source| self.unwritten(source))
    }

    /// Forgets what happened before `then`. How things stand is kept.
    pub async fn forget(&self, then: Timestamp) -> Result<(), DatabaseError> {
        within(LONGEST, rows::forget(&self.pool, then)).await.map_err(|source| self.unwritten(source))
    }

    /// Copies a file of SQLite to `copy`, which must not be there, while a scanner may run with it.
    pub async fn back_up(&self, copy: &Path) -> Result<(), DatabaseError> {
        if let Location::Server(_) = self.location {
            return Err(DatabaseError::ServerBackup { location: self.location.to_string() });
        }
        let failed = |source| DatabaseError::Copy { copy: copy.to_owned(), source };
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(copy).map_err(failed)?;
        let copied = sqlx::query("VACUUM INTO $1").bind(copy.display().to_string()).execute(&self.pool).await;
        copied.map(drop).map_err(|source| {
            // Half a copy is none.
            if let Err(error) = std::fs::remove_file(copy) {
                tracing::debug!(%error, "the copy that failed is still there");
            }
            failed(io::Error::other(source))
        })
    }

    /// Ends all connections, of a server that hangs as well: a file is then all there is of it, without a log beside it.
    pub async fn close(&self) {
        if timeout(CLOSING, self.pool.close()).await.is_err() {
            tracing::debug!("the database did not let go of us");
        }
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    pub(super) fn pool(&self) -> &AnyPool {
        &self.pool
    }

    pub(super) fn vantage(&self) -> &Name {
        &self.vantage
    }

    pub(super) fn unwritten(&self, source: sqlx::Error) -> DatabaseError {
        DatabaseError::Write { location: self.location.to_string(), source }
    }

    pub(super) fn unread(&self, source: sqlx::Error) -> DatabaseError {
        DatabaseError::Read { location: self.location.to_string(), source }
    }
}

/// Nothing waits for ever for a server that has gone away.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    if connection.backend_name() == "SQLite" {
        connection.execute("PRAGMA busy_timeout = 10000").await?;
        // What was said to be written stands after a power cut too.
        connection.execute("PRAGMA synchronous = FULL").await?;
    }
    Ok(())
}

/// The version of the tables; `None` where there are none.
async fn version(pool: &AnyPool) -> Result<Option<i64>, sqlx::Error> {
    match sqlx::query("SELECT MAX(version) FROM _sqlx_migrations").fetch_one(pool).await {
        Ok(row) => row.try_get(0),
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| NO_TABLE.contains(&&*code)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn migrator() -> Migrator {
    let migration = |version, text: &'static str| {
        Migration::new(version, "deadlight".into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, include_str!("schema.1.sql")),
        migration(2, include_str!("schema.2.sql")),
        migration(3, include_str!("schema.3.sql")),
        migration(VERSION, include_str!("schema.4.sql")),
    ])
}

/// What stands in it is nobody else's business.
fn make_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().create_new(true).write(true).mode(0o600).open(path) {
        Ok(made) => file::give_to_owner_of(file::directory_of(path), &made),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// One scanner at a time.
fn lock(path: &Path, location: &Location) -> Result<File, DatabaseError> {
    let failed = |source| DatabaseError::File { location: location.to_string(), source };
    let lock = file::open_lock(&path.with_added_extension("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DatabaseError::Busy { location: location.to_string() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}
