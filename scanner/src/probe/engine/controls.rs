//! The ports of one address that are known to answer, and what asking them again teaches: loss and
//! round-trip time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::Loss;
use super::super::cookie::SERIALS;
use super::super::rtt::Rtt;

/// Serial numbers below this one are attempts, the others are controls.
pub(super) const FIRST_SERIAL: u16 = 32;
/// Attempts from one control to the next: not so few that controls are most of what is sent, not so
/// many that a short trouble goes unseen.
const EVERY: std::ops::RangeInclusive<u32> = 4..=64;

/// What a control costs its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// A packet, of which no program learns: 40 in a pass make three silent attempts enough where
    /// nothing is lost.
    Packet,
    /// A connection, which an open service has to take: 12 in a pass make four enough, and closed
    /// ports are asked first.
    Connection,
}

impl Cost {
    fn controls_in_a_pass(self) -> usize {
        match self {
            Self::Packet => 40,
            Self::Connection => 12,
        }
    }
}

/// Ports that take turns, so that none is asked often enough to be taken for an attack.
const MOST: usize = 8;
/// An answer after this time may be the target's repetition of an earlier one.
const AMBIGUOUS: Duration = Duration::from_secs(1);

/// Controls go out among the attempts, in every pass alike: what they meet is what the attempts meet.
#[derive(Debug)]
pub(super) struct Controls {
    cost: Cost,
    every: u32,
    /// Open ports answer every SYN; RSTs are rationed by some hosts, so closed ports are second best.
    open: Vec<u16>,
    closed: Vec<u16>,
    turn: usize,
    serial: u16,
    sent: VecDeque<Sent>,
    /// Attempts since the last control.
    attempts: u32,
    /// Attempts and controls of the running pass.
    pass: (u32, u32),
    asked: bool,
    loss: Loss,
    rtt: Rtt,
}

#[derive(Debug)]
struct Sent {
    serial: u16,
    at: Instant,
    overdue: bool,
}

impl Controls {
    /// For a lane of `ports` ports.
    pub(super) fn new(ports: usize, cost: Cost) -> Self {
        let every = u32::try_from(ports / cost.controls_in_a_pass()).unwrap_or(u32::MAX);
        let every = match cost {
            Cost::Packet => every.clamp(*EVERY.start(), *EVERY.end()),
            Cost::Connection => every.max(*EVERY.start()),
        };
        Self {
            cost,
            every,
            open: Vec::new(),
            closed: Vec::new(),
            turn: 0,
            serial: 0,
            sent: VecDeque::new(),
            attempts: 0,
            pass: (0, 0),
            asked: false,
            loss: Loss::default(),
            rtt: Rtt::default(),
        }
    }

    /// Notes that `port` answered with a handshake or a datagram.
    pub(super) fn opened(&mut self, port: u16) {
        Self::note(&mut self.open, port);
    }

    /// Notes that `port` refused.
    pub(super) fn refused(&mut self, port: u16) {
        Self::note(&mut self.closed, port);
    }

    fn note(ports: &mut Vec<u16>, port: u16) {
        if ports.len() < MOST {
            ports.push(port);
        }
    }

    /// Counts one ordinary attempt.
    pub(super) fn attempted(&mut self) {
        self.attempts += 1;
        self.pass.0 += 1;
    }

    /// Ends a pass; whether enough controls went out among its attempts to speak for them.
    pub(super) fn end_pass(&mut self) -> bool {
        let (attempts, controls) = std::mem::take(&mut self.pass);
        controls > 0 && controls * 2 * self.every >= attempts
    }

    /// Whether a control should leave now. One does at the first opportunity, because it measures the
    /// round trip, then one every so many attempts, and one at the `end` of a pass.
    pub(super) fn is_due(&self, end: bool) -> bool {
        let due = !self.asked || self.attempts >= self.every || end && self.attempts > 0;
        due && !self.known().is_empty()
    }

    /// The port and serial number of the control that leaves at `now`.
    pub(super) fn ask(&mut self, now: Instant) -> Option<(u16, u16)> {
        self.turn += 1;
        let ports = self.known();
        let port = *ports.get(self.turn % ports.len().max(1))?;
        self.serial = if self.serial + 1 < SERIALS { (self.serial + 1).max(FIRST_SERIAL) } else { FIRST_SERIAL };
        (self.attempts, self.asked) = (0, true);
        self.pass.1 += 1;
        self.sent.push_back(Sent { serial: self.serial, at: now, overdue: false });
        Some((port, self.serial))
    }

    /// Whether ports are known and none was asked yet.
    pub(super) fn is_unused(&self) -> bool {
        !self.asked && !self.known().is_empty()
    }

    /// Takes back a control that never left.
    pub(super) fn unsent(&mut self, serial: u16) {
        self.sent.retain(|sent| sent.serial != serial);
    }

    /// Takes an answer to control `serial`.
    pub(super) fn heard(&mut self, serial: u16, now: Instant) -> Loss {
        let Some(index) = self.sent.iter().position(|sent| sent.serial == serial) else { return Loss::default() };
        let Some(sent) = self.sent.remove(index) else { return Loss::default() };
        self.rtt.sample(now.saturating_duration_since(sent.at));
        self.count(Loss { asked: u32::from(!sent.overdue), lost: 0 })
    }

    /// Counts the controls whose answer is overdue at `now`.
    pub(super) fn expire(&mut self, now: Instant) -> Loss {
        while self.sent.front().is_some_and(|sent| now.saturating_duration_since(sent.at) >= AMBIGUOUS && sent.overdue)
        {
            self.sent.pop_front();
        }
        let timeout = self.timeout();
        let mut overdue = 0;
        for sent in self.sent.iter_mut().take_while(|sent| now.saturating_duration_since(sent.at) >= timeout) {
            overdue += u32::from(!std::mem::replace(&mut sent.overdue, true));
        }
        self.count(Loss { asked: overdue, lost: overdue })
    }

    /// How long an attempt may take.
    pub(super) fn timeout(&self) -> Duration {
        self.rtt.timeout()
    }

    /// What is known about the loss; `None` where no port is known to answer.
    pub(super) fn loss(&self) -> Option<Loss> {
        (self.loss.asked > 0).then_some(self.loss)
    }

    fn known(&self) -> &[u16] {
        let closed_first = self.cost == Cost::Connection && !self.closed.is_empty();
        match self.open.is_empty() || closed_first {
            true => &self.closed,
            false => &self.open,
        }
    }

    fn count(&mut self, fate: Loss) -> Loss {
        self.loss.asked += fate.asked;
        self.loss.lost += fate.lost;
        fate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn open_ports_take_turns_and_go_before_closed_ones() {
        let (mut controls, now) = (Controls::new(1_000, Cost::Packet), Instant::now());
        assert!(!controls.is_due(true) && !controls.is_unused());
        controls.refused(1);
        assert!(controls.is_due(false) && controls.is_unused(), "the first one at once");
        assert_eq!(controls.ask(now).map(|(port, _)| port), Some(1));
        assert!(!controls.is_due(true), "nothing was asked meanwhile");
        (0..24).for_each(|_| controls.attempted());
        assert!(!controls.is_due(false) && controls.is_due(true));
        controls.attempted();
        assert!(controls.is_due(false), "40 in a pass over 1,000 ports");
        (10..30).for_each(|port| controls.opened(port));
        let mut asked: Vec<_> = (0..16).filter_map(|_| controls.ask(now)).map(|(port, _)| port).collect();
        asked.sort_unstable();
        assert_eq!(asked, (10..18).flat_map(|port| [port, port]).collect::<Vec<_>>());
    }

    #[test]
    fn services_are_spared_where_a_control_is_a_connection() {
        let mut controls = Controls::new(1_200, Cost::Connection);
        controls.opened(80);
        assert_eq!(controls.ask(Instant::now()).map(|(port, _)| port), Some(80), "there is no other");
        controls.refused(1);
        assert_eq!(controls.ask(Instant::now()).map(|(port, _)| port), Some(1));
        (0..99).for_each(|_| controls.attempted());
        assert!(!controls.is_due(false), "12 in a pass");
    }

    #[test]
    fn an_answer_in_time_counts_and_one_too_late_was_lost() {
        let (mut controls, start) = (Controls::new(1_000, Cost::Packet), Instant::now());
        controls.opened(80);
        let serials: Vec<_> = (0..4).filter_map(|_| controls.ask(start)).map(|(_, serial)| serial).collect();
        assert_eq!(controls.heard(serials[0], after(start, 40)), Loss { asked: 1, lost: 0 });
        assert_eq!(controls.heard(serials[0], after(start, 41)), Loss::default(), "a duplicate");
        assert_eq!(controls.expire(after(start, 100)), Loss::default());
        assert_eq!(controls.expire(after(start, 500)), Loss { asked: 3, lost: 3 });
        assert_eq!(controls.heard(serials[1], after(start, 600)), Loss::default());
        assert!(controls.timeout() > Duration::from_millis(400), "but it teaches how long answers may take");
        controls.unsent(serials[2]);
        assert_eq!(controls.expire(after(start, 5_000)), Loss::default());
        assert_eq!(controls.loss(), Some(Loss { asked: 4, lost: 3 }));
    }

    #[test]
    fn serial_numbers_come_round_and_spare_those_of_attempts() {
        let (mut controls, now) = (Controls::new(1_000, Cost::Packet), Instant::now());
        controls.opened(80);
        let serials: Vec<_> = (0..=SERIALS).filter_map(|_| controls.ask(now)).map(|(_, serial)| serial).collect();
        assert_eq!((serials[0], serials.iter().min(), serials.iter().max()), (32, Some(&32), Some(&(SERIALS - 1))));
    }
}
