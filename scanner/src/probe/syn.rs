//! The SYN method without sockets: packets out, packets in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use deadlight_shared::PortState;

use super::cookie::Cookie;
use super::engine::{Engine, Probe, Reply, Step};
use super::packet::{Answer, AnswerKind, Ends, Syn};

/// An [`Engine`] whose probes are SYN packets.
///
/// A SYN carries a keyed hash of its target in sequence number and source port. An answer is believed
/// when it brings the same hash back, so nothing has to be remembered about a probe, and whoever did
/// not see the SYN has to guess 24 bits and a port.
#[derive(Debug)]
pub struct SynSweep {
    engine: Engine,
    cookie: Cookie,
    sources: Vec<IpAddr>,
    lanes: HashMap<IpAddr, usize>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynStep {
    /// Send the packet that was written, of this length.
    Send(Probe, usize),
    /// Nothing to send before this instant, unless a packet comes.
    Wait(Instant),
    /// Every target is settled.
    Done,
}

/// A port whose state became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Number of the lane.
    pub lane: usize,
    /// The port.
    pub port: u16,
    /// Its state.
    pub state: PortState,
    /// How often it had been asked.
    pub attempts: u32,
}

impl SynSweep {
    /// Asks the TCP lanes of `engine`, each from its address in `sources`, under `cookie`.
    pub fn new(engine: Engine, cookie: Cookie, sources: Vec<IpAddr>) -> Self {
        let lanes = (0..sources.len()).map(|index| (engine.lane(index).address, index)).collect();
        Self { engine, cookie, sources, lanes }
    }

    /// What to do at `now`; a packet to send is written to the start of `buffer`.
    pub fn next(&mut self, now: Instant, buffer: &mut [u8]) -> SynStep {
        loop {
            let probe = match self.engine.next(now) {
                Step::Ask(probe) => probe,
                Step::Wait(due) => return SynStep::Wait(due),
                Step::Done => return SynStep::Done,
            };
            let target = self.engine.lane(probe.lane).address;
            let (source_port, sequence) = self.cookie.mark(target, probe.port, probe.serial);
            let ends = Ends { source: self.sources[probe.lane], source_port, target, target_port: probe.port };
            match (Syn { ends, sequence }).write(buffer) {
                Some(length) => return SynStep::Send(probe, length),
                None => self.engine.not_asked(probe, "source and target are of two address families", now),
            }
        }
    }

    /// Takes a packet that was captured; the port whose state it settles.
    pub fn receive(&mut self, packet: &[u8], now: Instant) -> Option<Heard> {
        let Answer { ends, sequence, kind } = Answer::read(packet)?;
        let lane = *self.lanes.get(&ends.target)?;
        let port = ends.target_port;
        let serial = self.cookie.serial(ends.target, port, ends.source_port, sequence)?;
        let reply = match kind {
            AnswerKind::SynAck => Reply::Answered,
            AnswerKind::Reset => Reply::Refused,
            AnswerKind::Unreachable => Reply::Unreachable,
        };
        let (state, attempts) = self.engine.heard(lane, port, serial, reply, now)?;
        Some(Heard { lane, port, state, attempts })
    }

    /// Takes back a probe that could not be sent for now.
    pub fn unsent(&mut self, probe: Probe, now: Instant) {
        self.engine.unsent(probe, now);
    }

    /// The lanes and what they did not hear.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Counts packets that were captured and lost on this host, see [`Engine::overrun`].
    pub fn overrun(&mut self) {
        self.engine.overrun();
    }

    /// Gives a probe up because this host cannot send it.
    pub fn not_asked(&mut self, probe: Probe, reason: &str, now: Instant) {
        self.engine.not_asked(probe, reason, now);
    }

    /// The lanes and what they did not hear, for good.
    pub fn into_engine(self) -> Engine {
        self.engine
    }
}
