//! `kill -9` again and again, while ports open and close and the sink has its moods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    thread::sleep,
    time::Duration,
};

use anyhow::{Result, ensure};
use deadlight_scanner::{alert::Kind, store::Past};
use deadlight_shared::FindingStatus;
use deadlight_tests::{
    netns::Netns,
    programs::{Running, scanner},
    scratch,
    wait::wait_for,
};
use jiff::Timestamp;

use super::{FIRST_PORT, MINUTE, VANTAGE, ask, start};
use crate::{
    repetitions,
    sink::{AWAY, Behaviour, CUT, ERROR, GOOD, HANG, Message, Sink},
};

const KILLS: usize = 100;
const TOGGLED: u16 = 6;

pub(super) fn measure() -> Result<()> {
    let place = &Netns::new("alerts")?;
    let directory = scratch::directory()?;
    let webhook = place.enter(|| Sink::start(Behaviour::Moody))?;
    let config = directory.path().join("scanner.toml");
    fs::write(
        &config,
        format!(
            "[vantage]\nid = \"{VANTAGE}\"\n[sweep]\nevery = \"10s\"\nquick = \"1s\"\ntcp = \"{FIRST_PORT}-{}\"\n\
             udp = \"\"\nidentify = false\n[[node]]\nname = \"n1\"\naddresses = [\"127.0.0.1\"]\n{}\
             [store]\nurl = \"sqlite:deadlight.db\"\n",
            FIRST_PORT + TOGGLED - 1,
            webhook.block("webhook")
        ),
    )?;
    let times = repetitions(KILLS)?;
    let mut open: BTreeMap<u16, TcpListener> = BTreeMap::new();
    for _ in 0..times {
        for port in FIRST_PORT..FIRST_PORT + TOGGLED {
            if fastrand::u8(..3) == 0 && open.remove(&port).is_none() {
                open.insert(port, place.enter(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?))?);
            }
        }
        webhook.mood(fastrand::choice([GOOD, GOOD, ERROR, HANG, CUT, AWAY]).unwrap_or(GOOD));
        let program = start(place, &config, directory.path())?;
        sleep(Duration::from_millis(fastrand::u64(30..2_000)));
        program.kill()?;
    }
    webhook.mood(GOOD);
    drop(open);
    let mut words = scanner(place)?;
    let settling = Running::start(words.args(["run", "--config"]).arg(&config), "settling", directory.path())?;
    wait_for("a sweep", MINUTE, || settling.log().contains("RESULT").then_some(()).ok_or_else(|| settling.log()))?;
    wait_for("all alerts", MINUTE + MINUTE, || match waiting(directory.path()) {
        Ok(0) => Ok(()),
        other => Err(format!("{other:?}: {}", settling.log())),
    })?;
    settling.stop()?;
    report(times, directory.path(), &webhook.heard())
}

/// Compares what the database says with what the sink has.
fn report(times: usize, directory: &Path, heard: &[Message]) -> Result<()> {
    let Recorded { alerts, opened, closed } = recorded(directory)?;
    let mut carried: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let (mut repeated, mut other_key) = (0, 0);
    for message in heard.iter().filter(|message| message.has_arrived) {
        for number in message.numbers() {
            let keys = carried.entry(number).or_default();
            repeated += usize::from(!keys.is_empty());
            other_key += usize::from(keys.insert(message.key.clone()) && keys.len() > 1);
        }
    }
    let lost: Vec<u64> = alerts.iter().map(|(number, _)| *number).filter(|it| !carried.contains_key(it)).collect();
    let of = |kind| alerts.iter().filter(|(_, it)| *it == kind).count();
    println!(
        "| {times} × kill -9: openings and closings recorded; alerts of them; lost | {opened}, {closed}; {}, {}; {} | | |",
        of(Kind::Exposed),
        of(Kind::Resolved),
        lost.len()
    );
    println!(
        "| messages taken; alerts in them that came again; those with another idempotency-key | {}; {repeated}; {other_key} | | |",
        heard.iter().filter(|message| message.has_arrived).count()
    );
    ensure!(of(Kind::Exposed) == opened && of(Kind::Resolved) == closed, "not every event has its alert");
    ensure!(lost.is_empty() && other_key == 0, "lost: {lost:?}; visible duplicates: {other_key}");
    Ok(())
}

/// Each alert that was decided, and how many openings and closings there were.
struct Recorded {
    alerts: Vec<(u64, Kind)>,
    opened: usize,
    closed: usize,
}

fn recorded(directory: &Path) -> Result<Recorded> {
    let (alerts, events) = ask(directory, async |database| {
        // Whoever was told nothing yet is owed everything.
        database.tell("bench", 0, None).await?;
        let alerts = database.untold("bench").await?;
        Ok((alerts, Past(&database).events(Timestamp::UNIX_EPOCH, Timestamp::now()).await?))
    })?;
    let (mut opened, mut closed) = (0, 0);
    for (_, event) in events {
        match event.status {
            FindingStatus::Open | FindingStatus::Reopened => opened += 1,
            FindingStatus::Resolved => closed += 1,
            _ => {}
        }
    }
    Ok(Recorded { alerts: alerts.iter().map(|alert| (alert.number, alert.kind)).collect(), opened, closed })
}

/// How many alerts the sink has not taken.
fn waiting(directory: &Path) -> Result<u64> {
    let vantage = VANTAGE.parse()?;
    let sinks = ask(directory, async |database| Past(&database).sinks(&vantage).await)?;
    Ok(sinks.iter().map(|sink| sink.waiting).sum())
}
