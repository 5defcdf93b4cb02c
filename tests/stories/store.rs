//! What the scanner remembers, in SQLite and in a real PostgreSQL: the same for both.

#![expect(clippy::unwrap_used, reason = "the story's own words are well-formed")]

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use deadlight_scanner::{
    round::Ending,
    store::{Contact, Database, DatabaseError, Location, Past, Record, Seen, State, Store, Swept, Target, Warned, Why},
    sweep::Tally,
};
use deadlight_shared::{
    Finding, FindingId, FindingStatus, Name, Port, PortState,
    wire::{Mode, OrderMark},
};
use deadlight_tests::postgres::Postgres;
use jiff::Timestamp;

/// What a service may say about itself.
const HOSTILE: &str = "'; DROP TABLE finding; -- \u{0}\u{1b}[31m\n\"\u{1f6a2}";

#[test]
fn what_is_written_is_read_from_sqlite() -> Result<()> {
    on_sqlite(what_is_written_is_read)
}

#[test]
fn what_is_written_is_read_from_postgresql() -> Result<()> {
    on_postgresql(what_is_written_is_read)
}

async fn what_is_written_is_read(location: Location) -> Result<()> {
    let ours = name("office-a");
    let database = Database::open_alone(&location, &ours).await?;
    let mut wanted = database.load().await?;
    ensure!(wanted == State::default(), "{wanted:?}");
    for records in [first(), second()] {
        records.iter().for_each(|record| wanted.apply(record));
        database.write(&records).await?;
        // PostgreSQL has no text with a NUL.
        wanted.findings.iter_mut().for_each(|finding| finding.service = finding.service.as_ref().map(|s| stored(s)));
        wanted.seen.values_mut().for_each(|seen| seen.service = seen.service.as_ref().map(|s| stored(s)));
        let read = database.load().await?;
        ensure!(read == wanted, "{read:#?}\nis not\n{wanted:#?}");
    }
    let mut since = vec![database.wanted_sweep().await?];
    database.want_sweep(at(300)).await?;
    since.push(database.wanted_sweep().await?);
    database.take_wanted_sweep().await?;
    since.push(database.wanted_sweep().await?);
    ensure!(since == [None, Some(at(300)), None] && database.load().await? == wanted, "{since:?}");
    ensure!(
        wanted.records().iter().fold(State::default(), |mut state, record| {
            state.apply(record);
            state
        }) == wanted
    );

    let past = Past(&database);
    let events = past.events(at(0), at(1_000)).await?;
    let told: Vec<_> = events
        .iter()
        .map(|(finding, event)| format!("{} {} {}", finding.address, event.at.as_second(), event.status))
        .collect();
    ensure!(told == ["192.0.2.1 100 open", "2001:db8::1 100 open", "192.0.2.1 200 resolved"], "{told:?}");
    let story = past.story(&finding("192.0.2.1", FindingStatus::Open).id).await?;
    ensure!(story.len() == 2 && story[1].why == Why::Proof { evidence: "silence".to_owned() }, "{story:?}");
    let [v4, v6] = ["192.0.2.1", "2001:db8::1"].map(target);
    for (second, states) in [
        (99, BTreeMap::new()),
        (100, BTreeMap::from([(v4, PortState::Open), (v6, PortState::OpenFiltered)])),
        (200, BTreeMap::from([(v4, PortState::Filtered)])),
    ] {
        let said = past.states(at(second)).await?;
        ensure!(said == states, "at {second}: {said:?}");
    }
    let last = past.coverage(&ours, at(1_000)).await?.last.context("a sweep")?;
    ensure!(last == swept(200), "{last:?}");

    let theirs = Database::open(&location, &name("office-b")).await?.load().await?;
    ensure!(theirs == State::default(), "what one vantage point has seen no other has: {theirs:?}");
    Ok(())
}

#[test]
fn nothing_is_half_written_in_sqlite() -> Result<()> {
    on_sqlite(nothing_is_half_written)
}

#[test]
fn nothing_is_half_written_in_postgresql() -> Result<()> {
    on_postgresql(nothing_is_half_written)
}

/// Two scanners of one name: the first writes nothing any more once the second has begun.
async fn nothing_is_half_written(location: Location) -> Result<()> {
    let ours = name("office-a");
    let database = Database::open(&location, &ours).await?;
    let mut store = Store::new(database.load().await?, at(1_000));
    database.write(store.unsaved()).await?;
    store.saved();
    let mut other = Store::new(database.load().await?, at(2_000));
    database.write(other.unsaved()).await?;
    other.saved();

    store.keep(&[finding("192.0.2.1", FindingStatus::Open)], at(1_001), |_| Some(Why::Rescan));
    store.next_mark();
    let refused = database.write(store.unsaved()).await;
    ensure!(matches!(refused, Err(DatabaseError::Taken { .. })), "{refused:?}");
    let read = database.load().await?;
    ensure!(read.findings.is_empty() && read.mark == OrderMark { epoch: 2_000, sequence: 0 }, "{read:?}");
    ensure!(Past(&database).events(at(0), at(5_000)).await?.is_empty(), "half of it was written");
    other.next_mark();
    database.write(other.unsaved()).await?;
    Ok(())
}

#[test]
fn what_is_over_is_forgotten_by_sqlite() -> Result<()> {
    on_sqlite(what_is_over_is_forgotten)
}

#[test]
fn what_is_over_is_forgotten_by_postgresql() -> Result<()> {
    on_postgresql(what_is_over_is_forgotten)
}

async fn what_is_over_is_forgotten(location: Location) -> Result<()> {
    let database = Database::open(&location, &name("office-a")).await?;
    database.write(&first()).await?;
    database.write(&second()).await?;
    let before = database.load().await?;
    database.forget(at(150)).await?;
    ensure!(database.load().await? == before, "how things stand is kept");
    let events = Past(&database).events(at(0), at(1_000)).await?;
    let told: Vec<_> = events.iter().map(|(finding, event)| format!("{} {}", finding.address, event.status)).collect();
    ensure!(told == ["192.0.2.1 resolved"], "{told:?}");
    ensure!(Past(&database).coverage(&name("office-a"), at(1_000)).await?.last.is_some());
    database.forget(at(250)).await?;
    ensure!(Past(&database).coverage(&name("office-a"), at(1_000)).await?.last.is_none());
    Ok(())
}

#[test]
fn a_file_that_grows_too_large_forgets_the_oldest_and_nothing_that_is_open() -> Result<()> {
    on_sqlite(async |location| {
        let database = Database::open(&location, &name("office-a")).await?;
        database.write(&first()).await?;
        for hour in 1..=40 {
            let turned = |turn: i64| Record::Finding {
                finding: finding("192.0.2.1", FindingStatus::Open),
                at: at(hour * 3_600 + turn),
                why: Some(Why::Sweep { evidence: "x".repeat(4_000) }),
            };
            database.write(&(0..20).map(turned).collect::<Vec<_>>()).await?;
        }
        let (before, now) = (database.load().await?, at(41 * 3_600));
        let events = async || Past(&database).events(at(0), now).await;
        let all = events().await?.len();
        ensure!(database.keep_within(1 << 30, now).await?.is_none() && events().await?.len() == all);
        let since = database.keep_within(1 << 20, now).await?.context("more than 3 MiB fit into one")?;
        let left = events().await?;
        ensure!(left.len() > 100 && left.len() < all / 2, "{} of {all}", left.len());
        ensure!(left.iter().all(|(_, event)| event.at >= since) && database.load().await? == before);
        ensure!(left.last().is_some_and(|(_, event)| event.at == at(40 * 3_600 + 19)), "the last one is there");
        ensure!(database.keep_within(1, now).await?.is_some(), "what stands cannot be forgotten, and it ends");
        ensure!(database.load().await? == before);
        Ok(())
    })
}

#[test]
fn a_database_of_a_newer_version_is_left_alone() -> Result<()> {
    let postgres = Postgres::start()?;
    let location = Location::parse(&postgres.database("newer")?, Path::new("/"))?;
    wait(async {
        Database::open(&location, &name("office-a")).await?;
        Database::open(&location, &name("office-a")).await?;
        postgres.sql(
            "newer",
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'x', true, '', 0)",
        )?;
        let refused = Database::open(&location, &name("office-a")).await;
        ensure!(matches!(refused, Err(DatabaseError::Tables { .. })), "{refused:?}");
        let refused = Database::open_existing(&location, &name("office-a")).await;
        ensure!(matches!(refused, Err(DatabaseError::Version { theirs: 99, .. })), "{refused:?}");
        Ok(())
    })
}

#[test]
fn whoever_asks_while_a_scanner_starts_disturbs_nothing_in_sqlite() -> Result<()> {
    (0..20).try_for_each(|_| on_sqlite(whoever_asks_disturbs_nothing))
}

#[test]
fn whoever_asks_while_a_scanner_starts_disturbs_nothing_in_postgresql() -> Result<()> {
    on_postgresql(whoever_asks_disturbs_nothing)
}

/// Many ask, before, while and after the tables are made.
async fn whoever_asks_disturbs_nothing(location: Location) -> Result<()> {
    if let Location::File(path) = &location {
        fs::write(path, "")?;
        let absent = Database::open_existing(&location, &name("office-a")).await;
        ensure!(matches!(absent, Err(DatabaseError::Absent { .. })), "{absent:?}");
        ensure!(fs::metadata(path)?.len() == 0, "whoever only asked has written");
    }
    let ours = name("office-a");
    let asking = async {
        for _ in 0..10 {
            match Database::open_existing(&location, &ours).await {
                Ok(database) => database.close().await,
                Err(DatabaseError::Absent { .. } | DatabaseError::Version { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    let (started, asked) = tokio::join!(Database::open_alone(&location, &ours), asking);
    asked?;
    started?.load().await?;
    Database::open_existing(&location, &ours).await?.load().await?;
    Ok(())
}

#[test]
fn a_server_that_goes_away_loses_nothing() -> Result<()> {
    let postgres = Postgres::start()?;
    let location = Location::parse(&postgres.database("away")?, Path::new("/"))?;
    wait(async {
        let database = Database::open(&location, &name("office-a")).await?;
        let mut store = Store::new(database.load().await?, at(1_000));
        postgres.sql("postgres", "ALTER DATABASE away ALLOW_CONNECTIONS false")?;
        postgres.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'away'")?;
        let opened = Finding { service: None, ..finding("192.0.2.1", FindingStatus::Open) };
        store.keep(&[opened], at(1_001), |_| Some(Why::Rescan));
        let refused = database.write(store.unsaved()).await;
        ensure!(matches!(refused, Err(DatabaseError::Write { .. })), "{refused:?}");
        postgres.sql("postgres", "ALTER DATABASE away ALLOW_CONNECTIONS true")?;
        database.write(store.unsaved()).await?;
        ensure!(database.load().await? == *store.state(), "not everything arrived");
        Ok(())
    })
}

#[test]
fn a_file_is_for_one_scanner_and_for_nobody_else_to_read() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("a b%41.db");
    let location = Location::File(path.clone());
    wait(async {
        let absent = Database::open_existing(&location, &name("office-a")).await;
        ensure!(matches!(absent, Err(DatabaseError::Absent { .. })) && !path.exists(), "{absent:?}");
        let running = Database::open_alone(&location, &name("office-a")).await?;
        let second = Database::open_alone(&location, &name("office-b")).await;
        ensure!(matches!(second, Err(DatabaseError::Busy { .. })), "{second:?}");
        running.write(&first()).await?;
        let asked = Database::open_existing(&location, &name("office-a")).await?.load().await?;
        ensure!(asked.findings.len() == 2, "whoever only asks may: {asked:?}");
        for entry in fs::read_dir(directory.path())? {
            let entry = entry?;
            let mode = entry.metadata()?.permissions().mode() & 0o777;
            ensure!(
                mode == 0o600 || entry.path().extension().is_some_and(|kind| kind == "lock"),
                "{entry:?}: {mode:o}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_copy_is_made_while_a_scanner_runs() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (path, copy) = (directory.path().join("deadlight.db"), directory.path().join("it's a copy.db"));
    wait(async {
        let running = Database::open_alone(&Location::File(path.clone()), &name("office-a")).await?;
        running.write(&first()).await?;
        let asking = Database::open_existing(&Location::File(path.clone()), &name("office-a")).await?;
        asking.back_up(&copy).await?;
        running.write(&second()).await?;
        ensure!(fs::metadata(&copy)?.permissions().mode() & 0o777 == 0o600);
        let again = asking.back_up(&copy).await;
        ensure!(matches!(again, Err(DatabaseError::Copy { .. })), "{again:?}");
        let copied = Database::open_existing(&Location::File(copy.clone()), &name("office-a")).await?.load().await?;
        ensure!(copied.mark == OrderMark { epoch: 100, sequence: 7 } && copied.findings.len() == 2, "{copied:?}");
        Ok(())
    })
}

#[test]
fn a_damaged_file_is_refused_and_stays() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("deadlight.db");
    fs::write(&path, "no database at all, but long enough to be looked at as one".repeat(100))?;
    let before = fs::read(&path)?;
    wait(async {
        let refused = Database::open_alone(&Location::File(path.clone()), &name("office-a")).await;
        ensure!(matches!(refused, Err(DatabaseError::Open { .. } | DatabaseError::Tables { .. })), "{refused:?}");
        ensure!(fs::read(&path)? == before, "it was changed");
        Ok(())
    })
}

fn on_sqlite<F: Future<Output = Result<()>>>(story: impl Fn(Location) -> F) -> Result<()> {
    let directory = tempfile::tempdir()?;
    wait(story(Location::File(directory.path().join("deadlight.db"))))
}

fn on_postgresql<F: Future<Output = Result<()>>>(story: impl Fn(Location) -> F) -> Result<()> {
    let postgres = Postgres::start()?;
    wait(story(Location::parse(&postgres.database("deadlight")?, Path::new("/"))?))
}

fn wait(story: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(story)
}

/// Two ports are open at 100 s, and an agent does not answer.
fn first() -> Vec<Record> {
    let opened = |address| Record::Finding {
        finding: finding(address, FindingStatus::Open),
        at: at(100),
        why: Some(Why::Sweep { evidence: "syn-ack".to_owned() }),
    };
    let contact =
        Contact { asked: at(101), answered: None, mode: None, trouble: Some("refused".to_owned()), warned: None };
    vec![
        Record::Mark(OrderMark { epoch: 100, sequence: 7 }),
        Record::Seen { target: target("192.0.2.1"), seen: Some(seen(PortState::Open)), at: at(100) },
        Record::Seen { target: target("2001:db8::1"), seen: Some(seen(PortState::OpenFiltered)), at: at(100) },
        opened("192.0.2.1"),
        opened("2001:db8::1"),
        Record::Contact { node: name("n1"), contact },
        Record::Swept(swept(100)),
    ]
}

/// One of them is proven closed at 200 s, the other is not seen any more, and the agent has answered.
fn second() -> Vec<Record> {
    let contact = Contact {
        asked: at(201),
        answered: Some(at(201)),
        mode: Some(Mode::Enforce),
        trouble: None,
        warned: Some(warned()),
    };
    vec![
        Record::Mark(OrderMark { epoch: 200, sequence: 0 }),
        Record::Seen {
            target: target("192.0.2.1"),
            seen: Some(Seen { since: at(200), ..seen(PortState::Filtered) }),
            at: at(200),
        },
        Record::Seen { target: target("2001:db8::1"), seen: None, at: at(200) },
        Record::Finding {
            finding: finding("192.0.2.1", FindingStatus::Resolved),
            at: at(200),
            why: Some(Why::Proof { evidence: "silence".to_owned() }),
        },
        Record::Finding {
            finding: Finding { service: None, ..finding("2001:db8::1", FindingStatus::Open) },
            at: at(200),
            why: None,
        },
        Record::Contact { node: name("n1"), contact },
        Record::Swept(swept(200)),
    ]
}

fn finding(address: &str, status: FindingStatus) -> Finding {
    let Target { address, port } = target(address);
    let node = name("n1");
    Finding {
        id: FindingId::of(&node, address, port),
        node,
        address,
        port: port.number,
        protocol: port.protocol,
        status,
        first_seen: at(100),
        service: Some(HOSTILE.to_owned()),
    }
}

fn seen(state: PortState) -> Seen {
    Seen { node: name("n1"), state, evidence: "x".to_owned(), service: Some(HOSTILE.to_owned()), since: at(100) }
}

fn warned() -> Warned {
    Warned { at: at(201), said: vec!["somebody deleted\n a rule".to_owned(), "é".to_owned()] }
}

fn swept(second: i64) -> Swept {
    let tally = Tally { targets: 5, open: 2, closed: 3, ..Tally::default() };
    let ending = Ending { open: 2, blind: vec![(name("n1"), target("2001:db8::1").address)], ..Ending::default() };
    Swept {
        started: at(second),
        finished: at(second + 1),
        interrupted: false,
        milliseconds: 900,
        scope: Some("0123456789abcdef".to_owned()),
        tally,
        ending,
    }
}

fn target(address: &str) -> Target {
    let (address, port): (_, Port) = (address.parse().unwrap(), "8080/tcp".parse().unwrap());
    Target { address, port }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn stored(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
