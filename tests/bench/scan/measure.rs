//! Runs a program once: what it took, and what it said.

use std::{
    io::Read,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::resource::UsageWho;

use crate::usage::{self, Process};

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
    let before = usage::spent_by(UsageWho::RUSAGE_CHILDREN)?;
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
    let process = Process::of(child.id().cast_signed());
    let (mut peak_kib, mut ended) = (0, true);
    while child.try_wait()?.is_none() {
        peak_kib = peak_kib.max(process.peak_kib());
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
    Ok(Run { wall, cpu: usage::spent_by(UsageWho::RUSAGE_CHILDREN)?.saturating_sub(before), peak_kib, ended, stdout })
}
