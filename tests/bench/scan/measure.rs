//! Runs a program once: what it took, and what it said.

use std::{
    fs,
    io::Read,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};

/// From one look at the memory of the program to the next.
const LOOK: Duration = Duration::from_millis(5);

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) wall: Duration,
    /// User and system.
    pub(crate) cpu: Duration,
    pub(crate) peak_kib: u64,
    /// Whether it ended by itself in time.
    pub(crate) ended: bool,
    pub(crate) stdout: String,
}

/// Runs `command` for at most `limit`.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Run> {
    let before = children()?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let mut out = child.stdout.take().context("its output")?;
    let reading = thread::spawn(move || {
        let mut text = Vec::new();
        out.read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let status = format!("/proc/{}/status", child.id());
    let (mut peak_kib, mut ended) = (0, true);
    while child.try_wait()?.is_none() {
        peak_kib = peak_kib.max(high_water(&status));
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            ended = false;
            break;
        }
        thread::sleep(LOOK);
    }
    let wall = started.elapsed();
    let stdout = reading.join().ok().context("the reader panicked")??;
    Ok(Run { wall, cpu: children()?.saturating_sub(before), peak_kib, ended, stdout })
}

/// What all children that have ended used together.
fn children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn high_water(status: &str) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
