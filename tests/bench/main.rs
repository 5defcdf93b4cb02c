//! `make bench`: figures beside a peer's, measured in the same run and the same lab.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod alerts;
mod apply;
mod audit;
mod datapath;
mod door;
mod drift;
mod endure;
mod fleet;
mod guarded;
mod order;
mod page;
mod probe;
mod scan;
mod sink;
mod trust;
mod usage;

use std::time::Duration;

use anyhow::Result;

const RUNS: usize = 5;

/// Measures one subject and prints its rows.
type Measure = fn() -> Result<()>;

fn main() -> Result<()> {
    deadlight_tests::scratch::sweep_stale()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "long") {
        return scan::measure_long();
    }
    if words.iter().any(|word| word == "fleet") {
        return fleet::measure(&words);
    }
    if words.iter().any(|word| word == "endure") {
        return endure::measure();
    }
    if words.iter().any(|word| word == "audit") {
        return audit::measure();
    }
    if words.iter().any(|word| word == "alerts") {
        println!("| what | Deadlight | peer | ratio |\n|---|---|---|---|");
        return alerts::measure(&words);
    }
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| word == name);
    let cases: [(&str, Measure); 7] = [
        ("order", order::measure),
        ("drift", drift::measure),
        ("apply", apply::measure),
        ("datapath", datapath::measure),
        ("rest", apply::measure_rest),
        ("trust", trust::measure),
        ("page", page::measure),
    ];
    for (name, measure) in cases {
        if wanted(name) {
            println!("| what | Deadlight | peer | ratio |\n|---|---|---|---|");
            measure()?;
        }
    }
    if wanted("door") {
        door::measure()?;
    }
    if wanted("limits") {
        scan::limits::measure()?;
    }
    scan::measure(repetitions(RUNS)?, &words)
}

/// How often to measure where a subject lets one choose: `DEADLIGHT_BENCH_RUNS`, else `usual`.
fn repetitions(usual: usize) -> Result<usize> {
    Ok(std::env::var("DEADLIGHT_BENCH_RUNS").map_or(Ok(usual), |runs| runs.parse())?)
}

fn row(what: &str, ours: Duration, peer: Option<(&str, Duration)>) {
    let ours_text = milliseconds(ours);
    match peer {
        Some((name, peer)) => {
            let ratio = ours.as_secs_f64() / peer.as_secs_f64();
            println!("| {what} | {ours_text} | {name}: {} | {ratio:.2} |", milliseconds(peer));
        }
        None => println!("| {what} | {ours_text} | | |"),
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// The least value of `sorted` that `percent` of them do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100) - 1]
}
