//! Alerts of the real scanner at real sinks: ten thousand at once, and through `kill -9` and sinks in trouble.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use deadlight_scanner::{
    alert::Kind,
    store::{Database, Location, Past},
};
use deadlight_shared::FindingStatus;
use deadlight_tests::{
    netns::Netns,
    process::run,
    programs::{Running, scanner},
    scratch,
    wait::wait_for,
};
use jiff::Timestamp;
use serde_json::Value;

use crate::repetitions;

const NODES: u8 = 250;
const PORTS: u16 = 40;
const FIRST_PORT: u16 = 9_001;
const EXPOSURES: usize = NODES as usize * PORTS as usize;
const MINUTE: Duration = Duration::from_secs(60);
const KILLS: usize = 100;
const TOGGLED: u16 = 6;
const VANTAGE: &str = "office-a";

pub(crate) fn measure() -> Result<()> {
    let place = Netns::new("alerts")?;
    let words: Vec<String> = std::env::args().collect();
    let only = |name: &str| words.iter().all(|word| word != name);
    if only("kills") {
        flood(&place)?;
    }
    if only("flood") {
        kills(&place)?;
    }
    Ok(())
}

/// Everything is open at once: 40 listeners answer at each of 250 addresses of loopback.
fn flood(place: &Netns) -> Result<()> {
    let directory = scratch::directory()?;
    place.enter(|| {
        for port in FIRST_PORT..FIRST_PORT + PORTS {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            // Where nobody accepts, the kernel soon takes no more, and a port looks silent.
            thread::spawn(move || listener.incoming().for_each(drop));
        }
        Ok(())
    })?;
    let slack = place.enter(|| Sink::start(Behaviour::OneASecond))?;
    let webhook = place.enter(|| Sink::start(Behaviour::Moody))?;
    let nodes: String = (1..=NODES)
        .map(|number| format!("[[node]]\nname = \"n{number}\"\naddresses = [\"127.0.1.{number}\"]\n"))
        .collect();
    let config = directory.path().join("scanner.toml");
    fs::write(
        &config,
        format!(
            "[vantage]\nid = \"{VANTAGE}\"\n[sweep]\nevery = \"24h\"\ntcp = \"{FIRST_PORT}-{}\"\nudp = \"\"\n\
             identify = false\n{nodes}{}{}[store]\nurl = \"sqlite:deadlight.db\"\n[web]\n",
            FIRST_PORT + PORTS - 1,
            slack.block("slack"),
            webhook.block("webhook")
        ),
    )?;
    let started = Instant::now();
    let mut program = start(place, &config, directory.path())?;
    let first = wait_for("a message of Slack's", 2 * MINUTE, || {
        slack.heard().iter().find(|message| message.accepted).map(|message| message.at).ok_or_else(|| program.log())
    })?;
    sleep((first + MINUTE).saturating_duration_since(Instant::now()));
    let in_a_minute = slack.heard().iter().filter(|message| message.at <= first + MINUTE).count();
    let by_then = distinct(&webhook.heard());
    let listed = place.enter(listed)?;
    let swept = sweep_end(directory.path())?;
    let told_at = Timestamp::now() - jiff::SignedDuration::try_from(first.elapsed())?;
    println!(
        "| {EXPOSURES} exposures at once: the first Slack message after the start; after the sweep's end | {:.1} s; {:.1} s | | |",
        (first - started).as_secs_f64(),
        told_at.duration_since(swept).as_secs_f64()
    );
    println!("| requests at Slack in the minute from the first | {in_a_minute} | | |");
    println!("| listed by /api/v1/findings | {listed} of {EXPOSURES} | | |");
    println!("| at the webhook in the minute from the first message | {by_then} of {EXPOSURES} | | |");
    // Each start sends a message at once; to wait for the usual ones takes ten minutes.
    for _ in 0..EXPOSURES / 250 {
        program.stop()?;
        if distinct(&webhook.heard()) == EXPOSURES {
            break;
        }
        let before = webhook.heard().len();
        program = start(place, &config, directory.path())?;
        wait_for("another message", MINUTE, || (webhook.heard().len() > before).then_some(()).ok_or(program.log()))?;
    }
    let lost = EXPOSURES - distinct(&webhook.heard());
    println!("| lost at the webhook, after some restarts | {lost} of {EXPOSURES} | | |");
    ensure!(lost == 0 && listed == EXPOSURES, "{lost} alerts are lost, {listed} are listed");
    Ok(())
}

/// The scanner is killed again and again, while ports open and close and the sink has its moods.
fn kills(place: &Netns) -> Result<()> {
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (alerts, opened, closed) = runtime.block_on(recorded(directory))?;
    let mut carried: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let (mut repeated, mut other_key) = (0, 0);
    for message in heard.iter().filter(|message| message.has_arrived) {
        for number in &message.numbers {
            let keys = carried.entry(*number).or_default();
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
async fn recorded(directory: &Path) -> Result<(Vec<(u64, Kind)>, usize, usize)> {
    let database = Database::open_existing(&Location::File(directory.join("deadlight.db")), &VANTAGE.parse()?).await?;
    // Whoever was told nothing yet is owed everything.
    database.tell("bench", 0, None).await?;
    let alerts = database.untold("bench").await?.iter().map(|alert| (alert.number, alert.kind)).collect();
    let (mut opened, mut closed) = (0, 0);
    for (_, event) in Past(&database).events(Timestamp::UNIX_EPOCH, Timestamp::now()).await? {
        match event.status {
            FindingStatus::Open | FindingStatus::Reopened => opened += 1,
            FindingStatus::Resolved => closed += 1,
            _ => {}
        }
    }
    database.close().await;
    Ok((alerts, opened, closed))
}

/// How many alerts the sink has not taken.
fn waiting(directory: &Path) -> Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let vantage = VANTAGE.parse()?;
        let database = Database::open_existing(&Location::File(directory.join("deadlight.db")), &vantage).await?;
        let sinks = Past(&database).sinks(&vantage).await?;
        database.close().await;
        Ok(sinks.iter().map(|sink| sink.waiting).sum())
    })
}

fn start(place: &Netns, config: &Path, directory: &Path) -> Result<Running> {
    Running::start(scanner(place)?.args(["run", "--config"]).arg(config), "scanner", directory)
}

fn listed() -> Result<usize> {
    let mut curl = Command::new("curl");
    let said = run(curl.args(["-fsS", "--noproxy", "*", "http://127.0.0.1:7480/api/v1/findings"]))?;
    let findings: Value = serde_json::from_str(&said)?;
    Ok(findings["findings"].as_array().context("findings")?.len())
}

fn sweep_end(directory: &Path) -> Result<Timestamp> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let vantage = VANTAGE.parse()?;
        let database = Database::open_existing(&Location::File(directory.join("deadlight.db")), &vantage).await?;
        let sweeps = Past(&database).sweeps(&vantage, 100).await?;
        database.close().await;
        let first = sweeps.iter().min_by_key(|sweep| sweep.started).context("no sweep")?;
        Ok(first.finished)
    })
}

fn distinct(heard: &[Message]) -> usize {
    let taken = heard.iter().filter(|message| message.accepted);
    taken.flat_map(|message| &message.numbers).collect::<BTreeSet<_>>().len()
}

/// One message, as it arrived.
#[derive(Debug, Clone)]
struct Message {
    at: Instant,
    key: String,
    numbers: Vec<u64>,
    /// Its sink could act on it, whatever it said.
    has_arrived: bool,
    accepted: bool,
}

const GOOD: u8 = 0;
/// It answers 500, having done nothing.
const ERROR: u8 = 1;
/// It takes the message and never answers.
const HANG: u8 = 2;
/// It takes the message and closes without an answer.
const CUT: u8 = 3;
/// It closes before it has read anything.
const AWAY: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    OneASecond,
    Moody,
}

/// A place that alerts are sent to.
struct Sink {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Message>>>,
    mood: Arc<AtomicU8>,
}

impl Sink {
    fn start(behaviour: Behaviour) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let sink = Self { address: listener.local_addr()?, heard: Arc::default(), mood: Arc::default() };
        let (heard, mood) = (Arc::clone(&sink.heard), Arc::clone(&sink.mood));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (heard, mood) = (Arc::clone(&heard), mood.load(Ordering::SeqCst));
                // Whoever asked may be gone.
                thread::spawn(move || converse(stream, behaviour, mood, &heard).ok());
            }
        });
        Ok(sink)
    }

    fn mood(&self, mood: u8) {
        self.mood.store(mood, Ordering::SeqCst);
    }

    fn heard(&self) -> Vec<Message> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn block(&self, kind: &str) -> String {
        format!("[[alert]]\nkind = \"{kind}\"\nurl = \"http://{}/\"\n", self.address)
    }
}

fn converse(mut stream: TcpStream, behaviour: Behaviour, mood: u8, heard: &Mutex<Vec<Message>>) -> Result<()> {
    if mood == AWAY {
        return Ok(());
    }
    let (key, body) = read(&stream)?;
    let alerts = body["alerts"].as_array().map_or(&[][..], Vec::as_slice);
    let numbers = alerts.iter().filter_map(|alert| alert["number"].as_u64()).collect();
    let now = Instant::now();
    let accepted = {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let last = heard.iter().rev().find(|message| message.accepted).map(|message| message.at);
        let is_early = last.is_some_and(|last| now - last < Duration::from_secs(1));
        let accepted = mood == GOOD && !(behaviour == Behaviour::OneASecond && is_early);
        heard.push(Message { at: now, key, numbers, has_arrived: mood != ERROR, accepted });
        accepted
    };
    let status = match (accepted, mood) {
        (true, _) => "200 OK",
        (false, GOOD) => "429 Too Many Requests\r\nretry-after: 1",
        (false, ERROR) => "500 Internal Server Error",
        (false, HANG) => return stream.read(&mut [0]).map(drop).map_err(Into::into),
        _ => return Ok(()),
    };
    Ok(write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?)
}

/// Its idempotency-key and its JSON.
fn read(stream: &TcpStream) -> Result<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let (mut key, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("idempotency-key: ") {
            value.clone_into(&mut key);
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((key, serde_json::from_slice(&body)?))
}
