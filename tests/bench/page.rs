//! What an operator waits for: pages about 500 nodes and a year, the database of a year, and what a scanner takes that
//! rests.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use deadlight_scanner::{config::Config, store::Location};
use deadlight_shared::allowlist::today;
use deadlight_tests::{
    memories::{configuration, remember},
    netns::Netns,
    page::Served,
    postgres::Postgres,
    process::run,
    programs::{Running, scanner},
    scratch,
    wait::wait_for,
};
use jiff::Timestamp;

use crate::usage;

const NODES: u16 = 500;
const YEAR: i64 = 365;
const TIMES: usize = 20;
const REST: Duration = Duration::from_secs(130);

pub(crate) fn measure() -> Result<()> {
    let place = Netns::new("page")?;
    place.ip("link set lo up")?;
    place.enter(|| pages("SQLite", "sqlite:deadlight.db"))?;
    let server = Postgres::start()?;
    let url = server.database("deadlight")?;
    place.enter(|| pages("PostgreSQL", &url))?;
    let bytes: u64 = server.sql("deadlight", "SELECT pg_database_size('deadlight')")?.parse()?;
    println!("| PostgreSQL's database of {NODES} nodes and {YEAR} days | {} MiB | | |", bytes >> 20);
    growth()?;
    rest(&place)
}

/// Each page, as often as somebody is impatient.
fn pages(kind: &str, url: &str) -> Result<()> {
    let directory = scratch::directory()?;
    let text = configuration(NODES).replace("sqlite:deadlight.db", url);
    let config = Config::parse(&text, &directory.path().join("scanner.toml"), today(Timestamp::now()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        remember(&config.store, NODES, YEAR, Timestamp::now()).await?;
        let page = Served::start(config, None).await?;
        let address = page.address;
        for path in ["/", "/findings", "/findings?page=9", "/nodes", "/nodes?page=4", "/sweeps", "/agents", "/allowlist", "/metrics"] {
            let (slowest, bytes) = tokio::task::spawn_blocking(move || slowest(address, path)).await??;
            let milliseconds = slowest.as_secs_f64() * 1e3;
            println!("| {path} of {NODES} nodes and {YEAR} days in {kind}, the slowest of {TIMES} | {milliseconds:.0} ms, {} KiB | | |", bytes / 1_024);
        }
        Ok(())
    })
}

fn slowest(address: SocketAddr, path: &str) -> Result<(Duration, usize)> {
    let mut slowest = (Duration::ZERO, 0);
    for _ in 0..TIMES {
        let mut curl = Command::new("curl");
        let said = run(curl
            .args(["-fsS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{time_total} %{size_download}"])
            .arg(format!("http://{address}{path}")))?;
        let (seconds, bytes) = said.trim().split_once(' ').context("two numbers")?;
        slowest = slowest.max((Duration::from_secs_f64(seconds.parse()?), bytes.parse()?));
    }
    Ok(slowest)
}

/// A sweep every 15 minutes, and an exposure on one node in ten each day.
fn growth() -> Result<()> {
    let directory = scratch::directory()?;
    let path = directory.path().join("deadlight.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(remember(&Location::File(path.clone()), 50, YEAR, Timestamp::now()))?;
    println!(
        "| the file of SQLite, 50 nodes, a sweep every 15 minutes, {YEAR} days | {} MiB | | |",
        fs::metadata(&path)?.len() >> 20
    );
    Ok(())
}

/// Between full sweeps, with a quick one each minute and a page that nobody looks at.
fn rest(place: &Netns) -> Result<()> {
    let directory = scratch::directory()?;
    let config = directory.path().join("scanner.toml");
    fs::write(
        &config,
        "[vantage]\nid = \"office-a\"\n[sweep]\nevery = \"24h\"\ntcp = \"1-1000\"\nudp = \"\"\n\
         [[node]]\nname = \"n1\"\naddresses = [\"127.0.0.1\", \"::1\"]\n[store]\nurl = \"sqlite:deadlight.db\"\n[web]\n",
    )?;
    let program = Running::start(scanner(place)?.args(["run", "--config"]).arg(&config), "scanner", directory.path())?;
    wait_for("the first sweep", Duration::from_secs(60), || {
        let said = program.log();
        if said.contains("RESULT") { Ok(()) } else { Err(said) }
    })?;
    let process = usage::scanner_of(program.pid())?;
    let (before, began) = (process.spent()?, Instant::now());
    sleep(REST);
    let share = usage::percent(process.spent()? - before, began.elapsed());
    println!(
        "| a scanner between full sweeps, quick ones each minute, over {} s | {share:.2} % of a core, at most {} KiB | | |",
        REST.as_secs(),
        process.peak_kib()
    );
    program.stop()?;
    Ok(())
}
