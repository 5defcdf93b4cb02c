//! The SYN method with sockets and a clock: a thread of its own, so that nothing keeps it from
//! reading what was captured.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::SweepError;
use super::found::{By, Driven, Notice};
use super::lanes::random;
use crate::net::Way;
use crate::net::raw::{self, BATCH, Capture, Frame, Sender, SourcePorts};
use crate::probe::{Cookie, Engine, Lane, Limits, Probe, SynStep, SynSweep, is_shortage, reason};

/// Shorter waits are slept through: to be woken for every single answer costs more than it gains.
const NAP: Duration = Duration::from_millis(1);
/// From one look at the number of dropped packets to the next.
const COUNT_DROPS: Duration = Duration::from_millis(100);

/// The sockets that all lanes share; whoever has them may send and capture packets.
pub(super) struct Sockets {
    ports: SourcePorts,
    capture: Capture,
}

pub(super) struct SynDriver {
    sweep: SynSweep,
    ways: Vec<Way>,
    capture: Capture,
    links: BTreeMap<u32, Link>,
    _ports: SourcePorts,
}

struct Link {
    sender: Sender,
    probes: Vec<Probe>,
    frames: Vec<Frame>,
}

impl Sockets {
    /// Opens them for the families of `lanes`.
    pub(super) fn open(lanes: &[Lane]) -> Result<Self, SweepError> {
        let [choice, ..] = random()?.to_le_bytes();
        let ports = SourcePorts::reserve(choice.into())?;
        let v6 = lanes.iter().any(|lane| lane.address.is_ipv6());
        let v4 = lanes.is_empty() || lanes.iter().any(|lane| lane.address.is_ipv4());
        let capture = Capture::open(ports.first(), v4, v6)?;
        Ok(Self { ports, capture })
    }

    /// Closes them unused.
    pub(super) fn close(self) {
        raw::close(self.capture, std::iter::empty());
    }
}

impl SynDriver {
    /// Asks `lanes`, each along its way.
    pub(super) fn new(sockets: Sockets, lanes: Vec<(Lane, Way)>, limits: Limits) -> Result<Self, SweepError> {
        let Sockets { ports, capture } = sockets;
        let (lanes, ways): (Vec<Lane>, Vec<Way>) = lanes.into_iter().unzip();
        let mut links = BTreeMap::new();
        for way in &ways {
            if let Entry::Vacant(vacant) = links.entry(way.interface) {
                let sender = Sender::open(way.interface)?;
                vacant.insert(Link { sender, probes: Vec::with_capacity(BATCH), frames: Vec::with_capacity(BATCH) });
            }
        }
        let mut key = [0; 16];
        key[..8].copy_from_slice(&random()?.to_le_bytes());
        key[8..].copy_from_slice(&random()?.to_le_bytes());
        let engine = Engine::new(lanes, limits, random()?);
        let sources = ways.iter().map(|way| way.source).collect();
        let sweep = SynSweep::new(engine, Cookie::new(key, ports.first()), sources);
        Ok(Self { sweep, ways, capture, links, _ports: ports })
    }

    /// Runs to the end, or until the sweep is stopped.
    pub(super) fn run(mut self, mut notice: Notice) -> Driven {
        let mut counted = Instant::now();
        while !notice.is_stopped() {
            let now = Instant::now();
            self.receive(now, &mut notice);
            if now.duration_since(counted) >= COUNT_DROPS {
                counted = now;
                self.count_drops(&mut notice);
            }
            match self.fill(now) {
                Filled::Done => break,
                Filled::Batch => self.flush(now, &mut notice),
                Filled::Wait(due) => {
                    self.flush(now, &mut notice);
                    self.wait(due.saturating_duration_since(Instant::now()));
                }
            }
        }
        self.count_drops(&mut notice);
        let Self { sweep, capture, links, .. } = self;
        raw::close(capture, links.into_values().map(|link| link.sender));
        notice.end(sweep.into_engine())
    }

    fn receive(&mut self, now: Instant, notice: &mut Notice) {
        let Self { sweep, capture, .. } = self;
        let received = capture.receive(|packet| {
            if let Some(heard) = sweep.receive(packet, now) {
                let lane = sweep.engine().lane(heard.lane);
                notice.settled(lane, heard.port, heard.state, heard.attempts, By::Packet);
            }
        });
        if let Err(error) = received {
            // Without eyes every port would seem silent; the ports known to answer show it as loss.
            tracing::warn!(%error, "failed to read captured packets");
        }
    }

    fn count_drops(&mut self, notice: &mut Notice) {
        match self.capture.dropped() {
            Ok(0) => {}
            Ok(dropped) => {
                notice.dropped += dropped;
                self.sweep.overrun();
            }
            Err(error) => tracing::warn!(%error, "failed to read the number of dropped packets"),
        }
    }

    /// Writes the packets that may leave now.
    fn fill(&mut self, now: Instant) -> Filled {
        let mut frame = Frame::new();
        for _ in 0..BATCH {
            match self.sweep.next(now, frame.packet()) {
                SynStep::Done => return Filled::Done,
                SynStep::Wait(due) => return Filled::Wait(due),
                SynStep::Send(probe, length) => {
                    let way = &self.ways[probe.lane];
                    frame.complete(length, way.header.as_ref());
                    if let Some(link) = self.links.get_mut(&way.interface) {
                        link.probes.push(probe);
                        link.frames.push(frame);
                    }
                }
            }
        }
        Filled::Batch
    }

    fn flush(&mut self, now: Instant, notice: &mut Notice) {
        for Link { sender, probes, frames } in self.links.values_mut().filter(|link| !link.probes.is_empty()) {
            let (sent, error) = match sender.send(frames) {
                Ok(sent) => (sent, None),
                Err(error) => (0, Some(error)),
            };
            if sent < frames.len() {
                thread::sleep(NAP);
            }
            frames.clear();
            for (index, probe) in probes.drain(..).enumerate() {
                match &error {
                    _ if index < sent => notice.asked(probe),
                    Some(error) if !is_shortage(error) => self.sweep.not_asked(probe, &reason(error), now),
                    _ => self.sweep.unsent(probe, now),
                }
            }
        }
    }

    fn wait(&self, pause: Duration) {
        if pause <= NAP {
            thread::sleep(pause);
            return;
        }
        let mut descriptors: Vec<_> =
            self.capture.descriptors().map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        // Rounded down, and at most some seconds: the loop comes round often enough to be stopped.
        let milliseconds = u8::try_from(pause.as_millis()).unwrap_or(u8::MAX);
        if let Err(error) = poll(&mut descriptors, PollTimeout::from(milliseconds)) {
            tracing::debug!(error = %io::Error::from(error), "poll");
        }
    }
}

enum Filled {
    /// More may leave at once.
    Batch,
    /// Nothing more may leave before this instant.
    Wait(Instant),
    Done,
}
