//! What the guard costs those who use a port that stays open, as sets of nftables and as rules of iptables.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    panic, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use deadlight_tests::lab::{Family, Lab};

use crate::{
    RUNS,
    guarded::{Guard, guarded, plain},
    percentile, row,
};

const CLOSED: [u16; 3] = [0, 100, 1_000];
/// Nobody publishes or closes it.
const OPEN: u16 = 9_300;
const BLOCK: usize = 128 << 10;
const BLOCKS: usize = 8 << 10;
const CONNECTS: usize = 1_000;

/// Talks to an open port of the node.
type Work = fn(&Lab, SocketAddr) -> Result<Duration>;

pub(crate) fn measure() -> Result<()> {
    let mut nodes = vec![("none".to_owned(), plain()?), ("none, another node".to_owned(), plain()?)];
    for guard in [Guard::Nftables, Guard::Mangle] {
        for count in CLOSED {
            nodes.push((format!("{guard:?}, {count} closed"), guarded(guard, count)?));
        }
    }
    for family in Family::BOTH {
        let works: [(&str, Work); 2] =
            [("1 GiB to an open port", bulk), ("1,000 TCP connects to an open port", connects)];
        for (what, work) in works {
            let mut times = vec![Vec::new(); nodes.len()];
            for run in 0..RUNS {
                // Nobody is always the first.
                for node in (0..nodes.len()).map(|turn| (turn + run) % nodes.len()) {
                    times[node].push(work(&nodes[node].1, family.node(OPEN))?);
                }
            }
            times.iter_mut().for_each(|times| times.sort());
            let medians: Vec<Duration> = times.iter().map(|times| percentile(times, 50)).collect();
            for ((name, _), median) in nodes.iter().zip(&medians).skip(1) {
                row(&format!("{what}, guard: {name}, {family}"), *median, Some(("no guard", medians[0])));
            }
        }
    }
    Ok(())
}

fn bulk(lab: &Lab, to: SocketAddr) -> Result<Duration> {
    let listener = lab.node().enter(|| Ok(TcpListener::bind(to)?))?;
    beside(
        || {
            let (mut stream, _) = listener.accept()?;
            let (mut buffer, mut received) = (vec![0; BLOCK], 0);
            while let length @ 1.. = stream.read(&mut buffer)? {
                received += length;
            }
            ensure!(received == BLOCK * BLOCKS, "{received} bytes arrived");
            Ok(stream.write_all(b".")?)
        },
        || {
            let mut stream = lab.inet().enter(|| Ok(TcpStream::connect(to)?))?;
            let block = vec![0; BLOCK];
            let started = Instant::now();
            for _ in 0..BLOCKS {
                stream.write_all(&block)?;
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_exact(&mut [0])?;
            Ok(started.elapsed())
        },
    )
}

fn connects(lab: &Lab, to: SocketAddr) -> Result<Duration> {
    let listener = lab.node().enter(|| Ok(TcpListener::bind(to)?))?;
    beside(
        || {
            for _ in 0..CONNECTS {
                listener.accept()?;
            }
            Ok(())
        },
        || {
            lab.inet().enter(|| {
                let started = Instant::now();
                for _ in 0..CONNECTS {
                    // Held until the server has closed, so that the node keeps the waiting end.
                    TcpStream::connect(to)?.read_to_end(&mut Vec::new())?;
                }
                Ok(started.elapsed())
            })
        },
    )
}

/// Serves on a thread of its own.
fn beside(serve: impl FnOnce() -> Result<()> + Send, ask: impl FnOnce() -> Result<Duration>) -> Result<Duration> {
    thread::scope(|scope| {
        let serving = scope.spawn(serve);
        let took = ask()?;
        serving.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
        Ok(took)
    })
}
