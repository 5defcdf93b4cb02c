//! Ten thousand exposures at once, and a Slack that takes a message a second.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
    thread::{self, sleep},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use deadlight_scanner::store::Past;
use deadlight_tests::{netns::Netns, process::run, scratch, wait::wait_for};
use jiff::Timestamp;
use serde_json::Value;

use super::{FIRST_PORT, MINUTE, VANTAGE, ask, start};
use crate::sink::{Behaviour, Message, Sink};

const NODES: u8 = 250;
const PORTS: u16 = 40;
const EXPOSURES: usize = NODES as usize * PORTS as usize;

/// Everything is open at once: 40 listeners answer at each of 250 addresses of loopback.
pub(super) fn measure() -> Result<()> {
    let place = &Netns::new("alerts")?;
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
    let program = start(place, &config, directory.path())?;
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
    wait_for("all alerts", 2 * MINUTE, || match distinct(&webhook.heard()) {
        EXPOSURES => Ok(()),
        some => Err(format!("{some}: {}", program.log())),
    })?;
    if let Some(last) = webhook.heard().iter().rev().find(|message| message.accepted) {
        println!(
            "| from the first Slack message to the last at the webhook | {:.0} s | | |",
            (last.at - first).as_secs_f64()
        );
    }
    println!("| lost at the webhook | {} of {EXPOSURES} | | |", EXPOSURES - distinct(&webhook.heard()));
    ensure!(listed == EXPOSURES, "{listed} are listed");
    Ok(())
}

fn listed() -> Result<usize> {
    let mut curl = Command::new("curl");
    let said = run(curl.args(["-fsS", "--noproxy", "*", "http://127.0.0.1:7480/api/v1/findings"]))?;
    let findings: Value = serde_json::from_str(&said)?;
    Ok(findings["findings"].as_array().context("findings")?.len())
}

fn sweep_end(directory: &Path) -> Result<Timestamp> {
    let vantage = VANTAGE.parse()?;
    let sweeps = ask(directory, async |database| Past(&database).sweeps(&vantage, 100).await)?;
    Ok(sweeps.iter().min_by_key(|sweep| sweep.started).context("no sweep")?.finished)
}

fn distinct(heard: &[Message]) -> usize {
    let taken = heard.iter().filter(|message| message.accepted);
    taken.flat_map(Message::numbers).collect::<BTreeSet<_>>().len()
}
