//! One address: which port is asked next, and when it has been asked often enough.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadlight_shared::{PortState, Protocol};
use roaring::RoaringBitmap;

use super::super::Loss;
use super::super::order::Order;
use super::controls::{Controls, Cost, FIRST_SERIAL};
use super::pace::Pace;
use super::{Leftover, Probe, Reply};

/// Attempts at a silent port at most.
const MOST_ATTEMPTS: u32 = 12;
/// Passes at most: some of them may not count.
const MOST_PASSES: u32 = 20;
/// Attempts at a silent port where no port is known that the loss could be measured by.
const UNMEASURED: u32 = 3;
/// From the first attempt at a silent TCP port to the last, so that no shorter outage eats all of
/// them, and so that a target's own repetition of a lost SYN-ACK is waited for.
const SPAN: Duration = Duration::from_secs(1);

/// What to ask at one address.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Which node the address belongs to; nodes have a rate of their own.
    pub node: usize,
    /// The address.
    pub address: IpAddr,
    /// Protocol of all its ports.
    pub protocol: Protocol,
    /// The ports, ascending.
    pub ports: Arc<[u16]>,
}

/// A lane while it is asked.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) lane: Lane,
    key: u64,
    /// Ports that have answered one way or the other.
    answered: RoaringBitmap,
    open: RoaringBitmap,
    unreachable: RoaringBitmap,
    unasked: Option<(RoaringBitmap, String)>,
    controls: Controls,
    /// Attempts that every silent port has had, the running pass included.
    pass: u32,
    /// Passes that do not count, and the last of them.
    spoiled: (u32, u32),
    order: Order,
    position: u32,
    again: Vec<u16>,
    first: Option<Instant>,
    pass_began: Option<Instant>,
    last: Option<Instant>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asking,
    /// Waiting for answers, or for the next pass.
    Resting,
    Finished,
}

/// What a lane wants.
#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    Ask(Probe),
    Later(Instant),
    Finished,
}

impl Progress {
    pub(super) fn new(lane: Lane, cost: Cost, key: u64) -> Self {
        let ports = lane.ports.len();
        let order = Order::new(u32::try_from(ports).unwrap_or(u32::MAX), key);
        Self {
            lane,
            key,
            answered: RoaringBitmap::new(),
            open: RoaringBitmap::new(),
            unreachable: RoaringBitmap::new(),
            unasked: None,
            controls: Controls::new(ports, cost),
            pass: 1,
            spoiled: (0, 0),
            order,
            position: 0,
            again: Vec::new(),
            first: None,
            pass_began: None,
            last: None,
            phase: Phase::Asking,
        }
    }

    /// What lane number `index` wants at `now`.
    pub(super) fn next(&mut self, index: usize, now: Instant, pace: &mut Pace) -> Turn {
        pace.learn(self.controls.expire(now));
        loop {
            let resting = match self.phase {
                _ if self.is_settled() => {
                    self.phase = Phase::Finished;
                    return Turn::Finished;
                }
                Phase::Finished => return Turn::Finished,
                Phase::Resting if self.rests_until(now) <= now => {
                    self.rested(now);
                    continue;
                }
                Phase::Resting => true,
                Phase::Asking => false,
            };
            if resting && !self.controls.is_unused() {
                return Turn::Later(self.rests_until(now));
            }
            if let Err(due) = pace.ready(now) {
                return Turn::Later(due);
            }
            let Some((port, serial)) = self.choose(resting, now) else {
                self.end_pass();
                continue;
            };
            pace.spend();
            return Turn::Ask(Probe { lane: index, port, serial, limit: self.controls.timeout() });
        }
    }

    /// Takes a reply to probe `serial` at `port`; the port's new state, when it has one.
    pub(super) fn heard(
        &mut self,
        port: u16,
        serial: u16,
        reply: Reply,
        now: Instant,
        pace: &mut Pace,
    ) -> Option<PortState> {
        self.lane.ports.binary_search(&port).ok()?;
        if serial >= FIRST_SERIAL && reply != Reply::Unreachable {
            pace.learn(self.controls.heard(serial, now));
        }
        let number = u32::from(port);
        match reply {
            // A handshake beats a refusal that came before it: that one can be forged by whoever
            // stands on the way.
            Reply::Answered => self.open.insert(number).then(|| {
                self.answered.insert(number);
                if let Some((unasked, _)) = &mut self.unasked {
                    unasked.remove(number);
                }
                self.controls.opened(port);
                PortState::Open
            }),
            Reply::Refused => self.answered.insert(number).then(|| {
                if self.lane.protocol == Protocol::Tcp {
                    self.controls.refused(port);
                }
                PortState::Closed
            }),
            Reply::Unreachable => {
                self.unreachable.insert(number);
                None
            }
        }
    }

    /// Takes back a probe that never left; it is asked again.
    pub(super) fn unsent(&mut self, probe: Probe) {
        match probe.is_control() {
            true => self.controls.unsent(probe.serial),
            false => self.again.push(probe.port),
        }
        if self.phase == Phase::Resting {
            self.phase = Phase::Asking;
        }
    }

    /// Gives a port up because this host cannot ask it. A port that has answered before keeps its state.
    pub(super) fn not_asked(&mut self, port: u16, reason: &str) {
        if self.answered.insert(u32::from(port)) {
            let (ports, _) = self.unasked.get_or_insert_with(|| (RoaringBitmap::new(), reason.to_owned()));
            ports.insert(u32::from(port));
        }
    }

    /// Whether there is something to do now, however long the lane meant to wait.
    pub(super) fn is_urgent(&self) -> bool {
        self.is_settled() || self.controls.is_unused()
    }

    /// The running pass does not count: its answers may have been lost on this host, or nothing is
    /// known about its loss.
    pub(super) fn overrun(&mut self) {
        let (count, last) = self.spoiled;
        if last != self.pass && self.phase != Phase::Finished {
            self.spoiled = (count + 1, self.pass);
        }
    }

    fn is_settled(&self) -> bool {
        self.answered.len() == self.lane.ports.len() as u64
    }

    /// Ports that refused.
    pub(super) fn closed(&self) -> Vec<u16> {
        let mut closed = &self.answered - &self.open;
        if let Some((unasked, _)) = &self.unasked {
            closed -= unasked;
        }
        closed.iter().filter_map(|port| u16::try_from(port).ok()).collect()
    }

    /// Ports that have not answered, and what their silence means.
    pub(super) fn leftovers(&self) -> Vec<Leftover> {
        let silent = |port: &u16| !self.answered.contains(u32::from(*port));
        let unknown = self.unsure();
        // Where nothing follows from silence, nothing follows from what a router says about the way either.
        let barred = |port: &u16| unknown.is_none() && self.unreachable.contains(u32::from(*port));
        let (unreachable, silence): (Vec<u16>, Vec<u16>) =
            self.lane.ports.iter().copied().filter(silent).partition(barred);
        let left = |ports, unreachable| Leftover { ports, unreachable, attempts: self.pass, unknown: unknown.clone() };
        let mut leftovers = vec![left(unreachable, true), left(silence, false)];
        if let Some((ports, reason)) = &self.unasked {
            let ports = ports.iter().filter_map(|port| u16::try_from(port).ok()).collect();
            leftovers.push(Leftover { ports, unreachable: false, attempts: 0, unknown: Some(reason.clone()) });
        }
        leftovers.retain(|left| !left.ports.is_empty());
        leftovers
    }

    /// Why silence on this lane says nothing.
    fn unsure(&self) -> Option<String> {
        if self.phase != Phase::Finished {
            return Some("the sweep was interrupted".to_owned());
        }
        let Loss { asked, lost } = self.controls.loss()?;
        let enough =
            self.lane.protocol == Protocol::Udp || self.needed().is_some_and(|needed| needed <= self.counted());
        (!enough)
            .then(|| format!("ports that answered before kept silent {lost} of {asked} times: silence proves nothing"))
    }

    /// How ports that had answered did when they were asked again.
    pub(super) fn loss(&self) -> Option<Loss> {
        self.controls.loss()
    }

    /// Attempts that make silence mean something; `None` where the loss is too high for that.
    fn needed(&self) -> Option<u32> {
        match (self.controls.loss(), self.lane.protocol) {
            (None, _) => Some(UNMEASURED),
            // Silence proves nothing here; attempts only have to reach services that answer.
            (Some(Loss { lost: 0, .. }), Protocol::Udp) => Some(UNMEASURED),
            (Some(loss), _) => loss.attempts_needed(MOST_ATTEMPTS),
        }
    }

    /// The next port with the serial number of its probe; none when the pass is over.
    fn choose(&mut self, resting: bool, now: Instant) -> Option<(u16, u16)> {
        if resting || self.controls.is_due(false) {
            return self.controls.ask(now);
        }
        match self.unanswered() {
            Some(port) => {
                self.controls.attempted();
                self.last = Some(now);
                self.first.get_or_insert(now);
                self.pass_began.get_or_insert(now);
                Some((port, self.serial()))
            }
            None if self.controls.is_due(true) => self.controls.ask(now),
            None => None,
        }
    }

    fn unanswered(&mut self) -> Option<u16> {
        while let Some(port) = self.again.pop() {
            if !self.answered.contains(u32::from(port)) {
                return Some(port);
            }
        }
        while self.position < self.order.len() {
            let port = self.lane.ports[self.order.at(self.position) as usize];
            self.position += 1;
            if !self.answered.contains(u32::from(port)) {
                return Some(port);
            }
        }
        None
    }

    fn serial(&self) -> u16 {
        u16::try_from(self.pass - 1).unwrap_or(u16::MAX).min(FIRST_SERIAL - 1)
    }

    /// When every silent port has been asked in this pass: until the answers are there, and until the
    /// next pass is due.
    fn rests_until(&self, now: Instant) -> Instant {
        let answers = self.last.unwrap_or(now) + self.controls.timeout();
        match self.first {
            Some(first) if !self.is_enough() && !self.is_talkative() => answers.max(first + self.spread()),
            _ => answers,
        }
    }

    /// Every silent port has been asked in this pass.
    fn end_pass(&mut self) {
        self.phase = Phase::Resting;
        if !self.controls.end_pass() {
            self.overrun();
        }
    }

    /// From the first pass to the next one, such that the last needed one spans [`SPAN`].
    fn spread(&self) -> Duration {
        if self.lane.protocol == Protocol::Udp {
            return Duration::ZERO;
        }
        let needed = self.needed().unwrap_or(MOST_ATTEMPTS);
        (SPAN * self.pass / needed.saturating_sub(1).max(1)).min(SPAN)
    }

    /// Whether nearly every port answers: then silence is most likely loss, and asking again at once
    /// settles it.
    fn is_talkative(&self) -> bool {
        self.pass == 1 && self.answered.len() * 10 >= self.lane.ports.len() as u64 * 9
    }

    fn rested(&mut self, now: Instant) {
        if self.is_enough() {
            self.phase = Phase::Finished;
            return;
        }
        self.pass += 1;
        self.order = Order::new(self.order.len(), self.key.wrapping_add(self.pass.into()));
        (self.position, self.pass_began) = (0, Some(now));
        self.phase = Phase::Asking;
    }

    fn is_enough(&self) -> bool {
        let spanned = match (self.first, self.pass_began) {
            _ if self.lane.protocol == Protocol::Udp => true,
            (Some(first), Some(began)) => began.saturating_duration_since(first) >= SPAN,
            _ => false,
        };
        let needed = self.needed().unwrap_or(MOST_ATTEMPTS);
        self.counted() >= needed && spanned || self.pass >= MOST_PASSES
    }

    /// Attempts that every silent port has had, and whose answers would have been heard.
    fn counted(&self) -> u32 {
        match (self.controls.loss(), self.lane.protocol) {
            (Some(_), Protocol::Tcp) => self.pass - self.spoiled.0,
            _ => self.pass,
        }
    }
}
