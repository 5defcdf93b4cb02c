//! What the engine and the sender can do by themselves.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deadlight_scanner::{
    net::{
        Ways,
        raw::{BATCH, Frame, Sender},
    },
    probe::{Answer, Cookie, Cost, Engine, Lane, Limits, Reply, Step, SynStep, SynSweep},
};
use deadlight_shared::Protocol;

use super::lab::{Families, Lab, Shut, addresses};

const FIRST_PORT: u16 = 61_024;
const UNLIMITED: Limits = Limits { rate: NonZeroU32::MAX, rate_per_node: NonZeroU32::MAX, cost: Cost::Packet };
const FRAMES: u32 = 10_000_000;

pub(crate) fn measure() -> Result<()> {
    println!("\n| what | figure |\n|---|---|");
    println!("| packets built and sent over veth to a node that drops them, one thread | {:.0} a second |", sent()?);
    for nodes in [50, 500] {
        let (took, grown, probes) = simulated(nodes)?;
        let targets = f64::from(nodes) * 65_535.0;
        println!(
            "| {nodes} nodes × 65,535 ports in the engine, every other node closed, the rest silent but for one port | \
             {took:.1} s ({:.0} ns a probe), {grown:.0} MiB, {probes} probes for {targets:.0} targets |",
            took * 1e9 / probes as f64
        );
    }
    println!("| {FRAMES} hostile frames read | {:.1} s, no panic |", hostile().as_secs_f64());
    Ok(())
}

/// Packets a second, from building to the return of the system call.
fn sent() -> Result<f64> {
    let nodes = addresses(6, Families::V4);
    let lab = Lab::new(nodes.iter().map(|address| (*address, 80)).collect(), &[], Shut::Drop, None)?;
    lab.line.scanner.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let port = "80/tcp".parse().context("a port")?;
        let targets: Vec<_> = nodes.iter().map(|address| (*address, port)).collect();
        let ways = runtime.block_on(async {
            let mut ways = Ways::new()?;
            let routes = ways.routes(&targets).await;
            Ok::<_, anyhow::Error>(ways.along(routes, &targets).await)
        })?;
        let ways = ways.into_iter().collect::<Result<Vec<_>, _>>()?;
        let sender = Sender::open(ways[0].interface)?;
        let engine = Engine::new(nodes.iter().enumerate().map(lane).collect(), UNLIMITED, 7);
        let sources = ways.iter().map(|way| way.source).collect();
        let mut sweep = SynSweep::new(engine, Cookie::new([7; 16], FIRST_PORT), sources);
        let (started, mut sent) = (Instant::now(), 0);
        loop {
            let now = Instant::now();
            let mut batch = Vec::with_capacity(BATCH);
            while batch.len() < BATCH {
                let mut frame = Frame::new();
                let SynStep::Send(probe, length) = sweep.next(now, frame.packet()) else { break };
                frame.complete(length, ways[probe.lane].header.as_ref());
                batch.push(frame);
            }
            if batch.is_empty() {
                return Ok(f64::from(sent) / started.elapsed().as_secs_f64());
            }
            sent += u32::try_from(sender.send(&batch)?)?;
        }
    })
}

/// Seconds, MiB and probes of a sweep in virtual time.
fn simulated(nodes: u16) -> Result<(f64, f64, u64)> {
    let before = resident()?;
    let address = |node: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node));
    let all: Vec<_> = (0..nodes).map(address).collect();
    let ports: Arc<[u16]> = (1..=u16::MAX).collect();
    let lanes =
        all.iter().enumerate().map(|(node, address)| Lane { ports: Arc::clone(&ports), ..lane((node, address)) });
    let mut engine = Engine::new(lanes.collect(), UNLIMITED, 7);
    let (started, mut now, mut probes) = (Instant::now(), Instant::now(), 0_u64);
    loop {
        match engine.next(now) {
            Step::Done => break,
            Step::Wait(due) => now = due.max(now + Duration::from_nanos(1)),
            Step::Ask(probe) => {
                probes += 1;
                let reply = match (probe.lane % 2, probe.port) {
                    (_, 80) => Reply::Answered,
                    (0, _) => Reply::Refused,
                    _ => continue,
                };
                engine.heard(probe.lane, probe.port, probe.serial, reply, now + Duration::from_millis(1));
            }
        }
    }
    let took = started.elapsed().as_secs_f64();
    let grown = resident()?.saturating_sub(before);
    ensure!(engine.leftovers().all(|(_, left)| left.unknown.is_none()), "a simulated target is unknown");
    Ok((took, grown as f64 / 1024.0, probes))
}

fn hostile() -> Duration {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut frame = [0; 128];
    let started = Instant::now();
    for round in 0..FRAMES {
        rng.fill(&mut frame);
        // Headers that look right lead deeper.
        frame[0] = if round % 2 == 0 { 0x45 } else { 0x60 };
        (frame[6], frame[9]) = ([6, 58, 0, 17][round as usize % 4], [6, 1, 17, 0][round as usize / 4 % 4]);
        std::hint::black_box(Answer::read(&frame[..usize::from(rng.u8(..=128))]));
    }
    started.elapsed()
}

fn lane((node, address): (usize, &IpAddr)) -> Lane {
    Lane { node, address: *address, protocol: Protocol::Tcp, ports: (1..=u16::MAX).collect() }
}

/// KiB of memory in use by this process.
fn resident() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no figure")?.parse()?)
}
