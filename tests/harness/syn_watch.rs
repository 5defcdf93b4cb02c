//! A hundred SYNs a second to one port, and a count of what dares to answer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use pnet::packet::tcp::{MutableTcpPacket, TcpFlags, ipv4_checksum, ipv6_checksum};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{capture::Capture, netns::Netns, wait::wait_for};

const INTERVAL: Duration = Duration::from_millis(10);
const SOURCE_PORTS: std::ops::Range<u16> = 20_000..30_000;
const HEADER: usize = 20;
const ENOUGH: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(30);

/// Probes one port for as long as it lives. The SYN-ACKs are counted on the wire, so none can be missed.
#[derive(Debug)]
pub struct SynWatch {
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
    capture: Capture,
}

/// Counters of a [`SynWatch`] at one instant, or over a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// SYNs sent.
    pub sent: u64,
    /// SYN-ACKs seen.
    pub answered: u64,
}

impl SynWatch {
    /// Starts at once, from `source` (an address of `namespace`) to `target`.
    pub fn start(namespace: &Netns, source: IpAddr, target: SocketAddr) -> Result<Self> {
        let (sent, answered, stop) = <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let capture = Capture::start(namespace, {
            let answered = Arc::clone(&answered);
            move |segment| {
                if segment.source == target
                    && segment.flags & (TcpFlags::SYN | TcpFlags::ACK) == TcpFlags::SYN | TcpFlags::ACK
                {
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            }
        })?;
        let socket = namespace.enter(|| {
            Socket::new(Domain::for_address(target), Type::RAW, Some(Protocol::TCP)).context("open a raw socket")
        })?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        let sender = thread::spawn({
            let (sent, stop) = (Arc::clone(&sent), Arc::clone(&stop));
            move || {
                // The port of a raw destination must be 0 over IPv6.
                let destination = SocketAddr::new(target.ip(), 0).into();
                let mut next = Instant::now();
                for port in SOURCE_PORTS.cycle() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    match syn(SocketAddr::new(source, port), target)
                        .and_then(|it| Ok(socket.send_to(&it, &destination)?))
                    {
                        Ok(_) => sent.fetch_add(1, Ordering::SeqCst),
                        Err(error) => return eprintln!("SYNs to {target} end early: {error:#}"),
                    };
                    next += INTERVAL;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }
        });
        Ok(Self { sent, answered, stop, sender: Some(sender), capture })
    }

    /// The counters since the start.
    pub fn so_far(&self) -> Tried {
        Tried { sent: self.sent.load(Ordering::SeqCst), answered: self.answered.load(Ordering::SeqCst) }
    }

    /// The counters since `mark`.
    pub fn since(&self, mark: Tried) -> Tried {
        let now = self.so_far();
        Tried { sent: now.sent - mark.sent, answered: now.answered - mark.answered }
    }

    /// Waits until an open port has answered a good many times: this watch sees it.
    pub fn see_open(&self) -> Result<()> {
        wait_for("the watch to see an open port", PATIENCE, || match self.so_far() {
            seen if seen.answered >= ENOUGH => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
    }

    /// Waits until `count` more SYNs are out; returns what happened meanwhile.
    pub fn observe(&self, count: u64) -> Result<Tried> {
        let mark = self.so_far();
        let limit = INTERVAL * u32::try_from(count)? * 3 + Duration::from_secs(2);
        wait_for("the probing", limit, || {
            let tried = self.since(mark);
            if !self.capture.is_alive() {
                return Err("the capture has ended".to_owned());
            }
            if tried.sent >= count { Ok(tried) } else { Err(format!("{tried:?} of {count}")) }
        })
    }
}

impl Drop for SynWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.sender.take().is_some_and(|sender| sender.join().is_err()) {
            eprintln!("the sender of SYNs panicked");
        }
    }
}

fn syn(source: SocketAddr, target: SocketAddr) -> Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    let mut packet = MutableTcpPacket::new(&mut bytes).context("a TCP header has 20 bytes")?;
    packet.set_source(source.port());
    packet.set_destination(target.port());
    packet.set_sequence(u32::from(source.port()));
    packet.set_data_offset(5);
    packet.set_flags(TcpFlags::SYN);
    packet.set_window(64_240);
    let checksum = match (source.ip(), target.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4_checksum(&packet.to_immutable(), &from, &to),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6_checksum(&packet.to_immutable(), &from, &to),
        _ => bail!("{source} and {target} are of different families"),
    };
    packet.set_checksum(checksum);
    Ok(bytes)
}
