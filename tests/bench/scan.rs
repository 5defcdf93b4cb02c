//! A connect scan of all TCP ports of one node, beside `nmap -sT`.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::Lab,
    programs,
};

use crate::{percentile, row};

const RUNS: usize = 5;

pub(crate) fn measure() -> Result<()> {
    let lab = Lab::new(Layout::V28, Backend::Nft, ForwardPolicy::Drop)?;
    let ours = median(|| {
        let mut scan = programs::scanner(&lab.wire.inet)?;
        scan.args(["scan", "198.51.100.11", "--rate", "50000", "--output", "jsonl"]);
        Ok(scan)
    })?;
    let nmap = Command::new("nmap").arg("--version").stdout(Stdio::null()).status();
    let peer = match nmap {
        Ok(status) if status.success() => Some(median(|| {
            let mut nmap = lab.wire.inet.command("nmap");
            nmap.args(["-sT", "-n", "-Pn", "-T4", "--min-rate", "10000", "-p-", "198.51.100.11"]);
            Ok(nmap)
        })?),
        _ => {
            println!("(nmap is not installed; apt-get install nmap brings the peer)");
            None
        }
    };
    row("connect scan, 65,535 ports, closed node, median of 5", ours, peer.map(|peer| ("nmap -sT", peer)));
    Ok(())
}

fn median(command: impl Fn() -> Result<Command>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let mut command = command()?;
        let started = Instant::now();
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let status = status.with_context(|| format!("start {command:?}"))?;
        ensure!(matches!(status.code(), Some(0 | 1)), "{command:?} ended with {status}");
        times.push(started.elapsed());
    }
    times.sort();
    Ok(percentile(&times, 50))
}
