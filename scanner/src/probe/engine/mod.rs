//! The state machine of one sweep: lanes in turn, silent ports again, everything paced.
//!
//! It holds no target in memory before that target has answered, and not more than a bit and a half
//! afterwards: the order of ports is computed, attempts are passes over a whole lane, and only
//! answers are kept.

mod controls;
mod lane;
mod pace;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use deadlight_shared::PortState;

use super::Loss;
use super::pacer::Pacer;
use controls::FIRST_SERIAL;
use lane::{Progress, Turn};
use pace::Pace;

pub use controls::Cost;
pub use lane::Lane;

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Number of the lane.
    pub lane: usize,
    /// Port to ask.
    pub port: u16,
    /// Tells the probes at one port from each other.
    pub serial: u16,
    /// After this time without an answer it counts as silent.
    pub limit: Duration,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A SYN-ACK or a datagram.
    Answered,
    /// RST, or ICMP port unreachable for UDP.
    Refused,
    /// Another ICMP message: the way is barred.
    Unreachable,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send this.
    Ask(Probe),
    /// Nothing to send before this instant, unless an answer comes.
    Wait(Instant),
    /// Every target is settled.
    Done,
}

/// Ports of one lane that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The ports.
    pub ports: Vec<u16>,
    /// Whether ICMP said that the way to them is barred.
    pub unreachable: bool,
    /// How often each was asked.
    pub attempts: u32,
    /// Why nothing follows from it; `None` where silence is as good as certain.
    pub unknown: Option<String>,
}

/// What a sweep may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Probes a second in all.
    pub rate: NonZeroU32,
    /// Probes a second at each node.
    pub rate_per_node: NonZeroU32,
    /// What it costs a target to be asked again.
    pub cost: Cost,
}

/// One sweep.
#[derive(Debug)]
pub struct Engine {
    lanes: Vec<Progress>,
    paces: Vec<Pace>,
    pacer: Pacer,
    ready: VecDeque<usize>,
    later: BinaryHeap<Reverse<(Instant, usize)>>,
    /// When each waiting lane is to be looked at; an older entry of `later` is void.
    wakes: Vec<Option<Instant>>,
    unfinished: usize,
}

impl Probe {
    /// Whether it asks a port that is known to answer.
    pub fn is_control(&self) -> bool {
        self.serial >= FIRST_SERIAL
    }

    /// How many times the port has been asked, this probe included.
    pub fn attempt(&self) -> u32 {
        attempt(self.serial)
    }
}

fn attempt(serial: u16) -> u32 {
    u32::from(serial % FIRST_SERIAL) + 1
}

impl Engine {
    /// Asks `lanes` within `limits`. `key` decides the order.
    pub fn new(lanes: Vec<Lane>, limits: Limits, key: u64) -> Self {
        let Limits { rate, rate_per_node, cost } = limits;
        let nodes = lanes.iter().map(|lane| lane.node + 1).max().unwrap_or(0);
        let keyed = |(lane, number): (Lane, u64)| Progress::new(lane, cost, key.wrapping_add(number << 32));
        Self {
            paces: (0..nodes).map(|_| Pace::new(rate_per_node)).collect(),
            pacer: Pacer::new(rate),
            ready: (0..lanes.len()).collect(),
            later: BinaryHeap::new(),
            wakes: vec![None; lanes.len()],
            unfinished: lanes.len(),
            lanes: lanes.into_iter().zip(0..).map(keyed).collect(),
        }
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Instant) -> Step {
        self.wake(now);
        if self.unfinished == 0 {
            return Step::Done;
        }
        if let Err(due) = self.pacer.ready(now) {
            return Step::Wait(due);
        }
        while let Some(index) = self.ready.pop_front() {
            let lane = &mut self.lanes[index];
            match lane.next(index, now, &mut self.paces[lane.lane.node]) {
                Turn::Ask(probe) => {
                    self.pacer.spend();
                    self.ready.push_back(index);
                    return Step::Ask(probe);
                }
                Turn::Later(due) => self.sleep(index, due),
                Turn::Finished => self.unfinished -= 1,
            }
        }
        match self.later.peek() {
            Some(Reverse((due, _))) => Step::Wait(*due),
            None => Step::Done,
        }
    }

    /// Takes a reply to probe `serial` at `port` of lane `lane`; the port's state and the number of
    /// attempts, when the reply changes it.
    pub fn heard(
        &mut self,
        lane: usize,
        port: u16,
        serial: u16,
        reply: Reply,
        now: Instant,
    ) -> Option<(PortState, u32)> {
        let progress = self.lanes.get_mut(lane)?;
        let state = progress.heard(port, serial, reply, now, &mut self.paces[progress.lane.node]);
        self.look_again(lane, now);
        Some((state?, attempt(serial)))
    }

    /// Takes back a probe that this host was too short of something to send; it is asked again.
    pub fn unsent(&mut self, probe: Probe, now: Instant) {
        self.lanes[probe.lane].unsent(probe);
        if self.wakes[probe.lane].is_some() {
            self.sleep(probe.lane, now);
        }
    }

    /// Gives a port up because this host cannot ask it.
    pub fn not_asked(&mut self, probe: Probe, reason: &str, now: Instant) {
        self.lanes[probe.lane].not_asked(probe.port, reason);
        self.look_again(probe.lane, now);
    }

    /// Takes note that answers may have been lost on this host: the passes that are running do not count.
    pub fn overrun(&mut self) {
        self.lanes.iter_mut().for_each(Progress::overrun);
    }

    /// What each lane did not hear, in the order of the lanes.
    pub fn leftovers(&self) -> impl Iterator<Item = (usize, Leftover)> + '_ {
        self.lanes
            .iter()
            .enumerate()
            .flat_map(|(index, lane)| lane.leftovers().into_iter().map(move |left| (index, left)))
    }

    /// Ports of lane `index` that refused.
    pub fn closed(&self, index: usize) -> Vec<u16> {
        self.lanes[index].closed()
    }

    /// Ports of lane `index` that were asked often enough, and kept silent.
    pub fn silent_for_sure(&self, index: usize) -> Vec<u16> {
        let sure = self.lanes[index].leftovers().into_iter().filter(|left| left.unknown.is_none());
        sure.flat_map(|left| left.ports).collect()
    }

    /// How ports that had answered did when they were asked again, on all lanes together.
    pub fn loss(&self) -> Loss {
        let sum = |sum: Loss, loss: Loss| Loss {
            asked: sum.asked.saturating_add(loss.asked),
            lost: sum.lost.saturating_add(loss.lost),
        };
        self.lanes.iter().filter_map(Progress::loss).fold(Loss { asked: 0, lost: 0 }, sum)
    }

    /// The lanes, in order.
    pub fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().map(|lane| &lane.lane)
    }

    /// Lane number `index`.
    pub fn lane(&self, index: usize) -> &Lane {
        &self.lanes[index].lane
    }

    fn sleep(&mut self, index: usize, due: Instant) {
        self.wakes[index] = Some(due);
        self.later.push(Reverse((due, index)));
    }

    fn wake(&mut self, now: Instant) {
        while let Some(&Reverse((due, index))) = self.later.peek() {
            let void = self.wakes[index] != Some(due);
            if !void && due > now {
                break;
            }
            self.later.pop();
            if !void {
                self.wakes[index] = None;
                self.ready.push_back(index);
            }
        }
    }

    /// A waiting lane that need not wait any longer is looked at now.
    fn look_again(&mut self, index: usize, now: Instant) {
        if self.lanes[index].is_urgent() && self.wakes[index].is_some() {
            self.sleep(index, now);
        }
    }
}
