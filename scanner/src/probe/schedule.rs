//! The order of a sweep: nodes in turn, silent targets again later, everything paced.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadlight_shared::{Evidence, Port, PortState, Protocol};

use super::outcome::Outcome;
use super::pacer::Pacer;

/// Between two attempts at one silent target, so that one outage does not eat both.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
/// First pause after a shortage of this host; doubled each time.
const AFTER_SHORTAGE: Duration = Duration::from_millis(250);
/// Shortages of one target in a row before it counts as not asked.
const MOST_SHORTAGES: u32 = 4;

/// What to sweep on one node.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Addresses of the node.
    pub addresses: Vec<IpAddr>,
    /// Ports asked at each of them.
    pub ports: Arc<[Port]>,
}

/// One target with what was tried so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Index of the lane it belongs to.
    pub lane: usize,
    /// Address to ask.
    pub address: IpAddr,
    /// Port to ask.
    pub port: Port,
    /// Attempts that left, this one included.
    pub attempts: u32,
    shortages: u32,
    alone: bool,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this probe and [`Schedule::record`] its outcome.
    Ask(Probe),
    /// Nothing to send before this instant, or before the next outcome.
    Wait(Option<Instant>),
    /// Every target is settled.
    Done,
}

/// A target's final state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The verdict.
    pub state: PortState,
    /// What it rests on.
    pub evidence: Evidence,
}

/// The state machine of one sweep.
#[derive(Debug)]
pub struct Schedule {
    lanes: Vec<Progress>,
    turns: VecDeque<usize>,
    pacer: Pacer,
    in_flight: usize,
    /// Asked when nothing else is in flight.
    alone: VecDeque<Delayed>,
}

#[derive(Debug)]
struct Progress {
    lane: Lane,
    next: usize,
    again: VecDeque<Delayed>,
    pacer: Option<Pacer>,
    in_flight: usize,
}

#[derive(Debug)]
struct Delayed {
    due: Instant,
    probe: Probe,
}

impl Schedule {
    /// Sweeps `lanes` at `rate` probes a second in all, and `rate_per_lane` on each of them.
    pub fn new(lanes: Vec<Lane>, rate: NonZeroU32, rate_per_lane: Option<NonZeroU32>) -> Self {
        let turns = (0..lanes.len()).collect();
        let lanes = lanes.into_iter().map(|lane| Progress {
            lane,
            next: 0,
            again: VecDeque::new(),
            pacer: rate_per_lane.map(Pacer::new),
            in_flight: 0,
        });
        Self { lanes: lanes.collect(), turns, pacer: Pacer::new(rate), in_flight: 0, alone: VecDeque::new() }
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Instant) -> Step {
        if let Err(due) = self.pacer.ready(now) {
            return Step::Wait(Some(due));
        }
        let mut earliest: Option<Instant> = None;
        for _ in 0..self.turns.len() {
            let Some(index) = self.turns.pop_front() else { break };
            match self.lanes[index].take(index, now) {
                Turn::Probe(probe) => {
                    self.turns.push_back(index);
                    return self.ask(probe);
                }
                Turn::Later(due) => {
                    self.turns.push_back(index);
                    earliest = due.map_or(earliest, |due| Some(earliest.map_or(due, |other| other.min(due))));
                }
                Turn::Finished => {}
            }
        }
        match self.alone.front() {
            _ if self.in_flight > 0 || !self.turns.is_empty() => Step::Wait(earliest),
            Some(delayed) if delayed.due > now => Step::Wait(Some(delayed.due)),
            _ => self.alone.pop_front().map_or(Step::Done, |delayed| self.ask(delayed.probe)),
        }
    }

    /// Takes the outcome of a probe; the target's state when that settles it.
    pub fn record(&mut self, mut probe: Probe, outcome: Outcome, now: Instant) -> Option<Settled> {
        self.in_flight -= 1;
        self.lanes[probe.lane].in_flight -= 1;
        let protocol = probe.port.protocol;
        match outcome {
            Outcome::Answered { own_host: true } if !probe.alone => {
                probe.alone = true;
                self.again(probe, now);
                None
            }
            Outcome::Answered { .. } => Some(answered(protocol)),
            Outcome::Refused => Some(refused(protocol)),
            Outcome::Silent | Outcome::Unreachable if probe.attempts < attempts(protocol) => {
                self.again(probe, now + BETWEEN_ATTEMPTS);
                None
            }
            Outcome::Silent => Some(silent(protocol)),
            Outcome::Unreachable => Some(Settled { state: PortState::Filtered, evidence: Evidence::Unreachable }),
            Outcome::Short(reason) if probe.shortages >= MOST_SHORTAGES => Some(not_asked(reason)),
            Outcome::Short(_) => {
                let pause = AFTER_SHORTAGE * 2_u32.pow(probe.shortages);
                probe.shortages += 1;
                probe.attempts -= 1;
                self.again(probe, now + pause);
                None
            }
            Outcome::NotAsked(reason) => Some(not_asked(reason)),
        }
    }

    fn ask(&mut self, mut probe: Probe) -> Step {
        probe.attempts += 1;
        self.pacer.spend();
        self.in_flight += 1;
        self.lanes[probe.lane].in_flight += 1;
        Step::Ask(probe)
    }

    fn again(&mut self, probe: Probe, due: Instant) {
        match probe.alone {
            true => self.alone.push_back(Delayed { due, probe }),
            false => self.lanes[probe.lane].again.push_back(Delayed { due, probe }),
        }
    }
}

enum Turn {
    Probe(Probe),
    Later(Option<Instant>),
    Finished,
}

impl Progress {
    /// The lane's next probe: a repetition that is due before a fresh target, which bounds how
    /// many repetitions wait.
    fn take(&mut self, index: usize, now: Instant) -> Turn {
        let due = self.again.front().map(|delayed| delayed.due);
        let fresh = self.fresh(index);
        if due.is_none_or(|due| due > now) && fresh.is_none() {
            return match due.is_none() && self.in_flight == 0 {
                true => Turn::Finished,
                false => Turn::Later(due),
            };
        }
        if let Some(pacer) = &mut self.pacer {
            if let Err(due) = pacer.ready(now) {
                return Turn::Later(Some(due));
            }
            pacer.spend();
        }
        if due.is_some_and(|due| due <= now) {
            return self.again.pop_front().map_or(Turn::Later(None), |delayed| Turn::Probe(delayed.probe));
        }
        self.next += 1;
        fresh.map_or(Turn::Finished, Turn::Probe)
    }

    fn fresh(&self, index: usize) -> Option<Probe> {
        let addresses = &self.lane.addresses;
        let port = *self.lane.ports.get(self.next.checked_div(addresses.len())?)?;
        let address = addresses[self.next % addresses.len()];
        Some(Probe { lane: index, address, port, attempts: 0, shortages: 0, alone: false })
    }
}

/// Attempts at a silent target. A TCP attempt lasts long enough for the kernel to repeat its SYN.
fn attempts(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => 2,
        Protocol::Udp => 3,
    }
}

fn answered(protocol: Protocol) -> Settled {
    let evidence = match protocol {
        Protocol::Tcp => Evidence::SynAck,
        Protocol::Udp => Evidence::UdpReply,
    };
    Settled { state: PortState::Open, evidence }
}

fn refused(protocol: Protocol) -> Settled {
    let evidence = match protocol {
        Protocol::Tcp => Evidence::Rst,
        Protocol::Udp => Evidence::PortUnreachable,
    };
    Settled { state: PortState::Closed, evidence }
}

fn silent(protocol: Protocol) -> Settled {
    let state = match protocol {
        Protocol::Tcp => PortState::Filtered,
        Protocol::Udp => PortState::OpenFiltered,
    };
    Settled { state, evidence: Evidence::Silence }
}

fn not_asked(reason: String) -> Settled {
    Settled { state: PortState::Unknown, evidence: Evidence::NotAsked(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(addresses: &[&str], ports: &[&str]) -> Lane {
        Lane {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
        }
    }

    fn schedule(lanes: Vec<Lane>) -> Schedule {
        Schedule::new(lanes, NonZeroU32::new(1_000_000).unwrap(), None)
    }

    fn ask(schedule: &mut Schedule, now: Instant) -> Probe {
        match schedule.next(now) {
            Step::Ask(probe) => probe,
            other => panic!("no probe but {other:?}"),
        }
    }

    /// Runs one target through `outcomes`, waiting whenever the schedule says so.
    fn settle(port: &str, outcomes: &[Outcome]) -> (Settled, u32, Duration) {
        let mut schedule = schedule(vec![lane(&["127.0.0.1"], &[port])]);
        let start = Instant::now();
        let mut now = start;
        for outcome in outcomes {
            let probe = loop {
                match schedule.next(now) {
                    Step::Ask(probe) => break probe,
                    Step::Wait(Some(due)) => now = due,
                    other => panic!("{other:?} before {outcome:?}"),
                }
            };
            let attempts = probe.attempts;
            if let Some(settled) = schedule.record(probe, outcome.clone(), now) {
                assert_eq!(schedule.next(now), Step::Done);
                return (settled, attempts, now - start);
            }
        }
        panic!("not settled by {outcomes:?}");
    }

    #[test]
    fn outcomes_settle_a_target() {
        use Outcome::{NotAsked, Refused, Silent, Unreachable};
        let far = Outcome::Answered { own_host: false };
        let cases: &[(&str, &[Outcome], PortState, &str, u32)] = &[
            ("80/tcp", std::slice::from_ref(&far), PortState::Open, "syn-ack", 1),
            ("80/tcp", &[Refused], PortState::Closed, "rst", 1),
            ("80/tcp", &[Silent, Silent], PortState::Filtered, "silence", 2),
            ("80/tcp", &[Silent, far.clone()], PortState::Open, "syn-ack", 2),
            ("80/tcp", &[Unreachable, far.clone()], PortState::Open, "syn-ack", 2),
            ("80/tcp", &[Silent, Unreachable], PortState::Filtered, "icmp-unreachable", 2),
            ("80/tcp", &[NotAsked("no".into())], PortState::Unknown, "not asked: no", 1),
            ("53/udp", std::slice::from_ref(&far), PortState::Open, "udp-reply", 1),
            ("53/udp", &[Silent, Refused], PortState::Closed, "icmp-port-unreachable", 2),
            ("53/udp", &[Silent, Silent, Silent], PortState::OpenFiltered, "silence", 3),
        ];
        for (port, outcomes, state, evidence, attempts) in cases {
            let (settled, used, _) = settle(port, outcomes);
            assert_eq!((settled.state, settled.evidence.to_string().as_str()), (*state, *evidence), "{outcomes:?}");
            assert_eq!(used, *attempts, "{outcomes:?}");
        }
    }

    #[test]
    fn a_shortage_of_this_host_is_waited_out_and_costs_no_attempt() {
        let short = || Outcome::Short("too many open files".into());
        let (settled, attempts, waited) = settle("80/tcp", &[short(), short(), Outcome::Refused]);
        assert_eq!((settled.state, attempts), (PortState::Closed, 1));
        assert_eq!(waited, Duration::from_millis(750));
        let (settled, ..) = settle("80/tcp", &[short(), short(), short(), short(), short()]);
        assert_eq!(settled.evidence, Evidence::NotAsked("too many open files".into()));
    }

    #[test]
    fn two_attempts_at_a_silent_target_are_a_second_apart() {
        let (_, _, waited) = settle("80/tcp", &[Outcome::Silent, Outcome::Silent]);
        assert_eq!(waited, BETWEEN_ATTEMPTS);
    }

    #[test]
    fn an_answer_of_this_very_host_is_asked_again_with_nothing_else_in_flight() {
        let mut schedule = schedule(vec![lane(&["127.0.0.1"], &["40000/tcp", "50000/tcp"])]);
        let now = Instant::now();
        let (one, other) = (ask(&mut schedule, now), ask(&mut schedule, now));
        let own = Outcome::Answered { own_host: true };
        assert_eq!(schedule.record(one, own.clone(), now), None);
        assert_eq!(schedule.next(now), Step::Wait(None), "the other probe is still in flight");
        assert_eq!(schedule.record(other, own, now), None);
        let again = ask(&mut schedule, now);
        assert_eq!(schedule.next(now), Step::Wait(None), "one at a time");
        let settled = schedule.record(again, Outcome::Refused, now).unwrap();
        assert_eq!(settled.state, PortState::Closed);
        let again = ask(&mut schedule, now);
        let settled = schedule.record(again, Outcome::Answered { own_host: true }, now).unwrap();
        assert_eq!(settled.state, PortState::Open);
        assert_eq!(schedule.next(now), Step::Done);
    }

    #[test]
    fn nodes_take_turns_and_every_target_is_asked_once() {
        let first = lane(&["192.0.2.1", "2001:db8::1"], &["1/tcp", "2/tcp"]);
        let second = lane(&["192.0.2.2"], &["1/tcp", "2/tcp", "3/tcp"]);
        let mut schedule = schedule(vec![first, second, lane(&[], &["1/tcp"])]);
        let now = Instant::now();
        let mut asked = Vec::new();
        while let Step::Ask(probe) = schedule.next(now) {
            asked.push(format!("{} {}", probe.address, probe.port));
            assert!(schedule.record(probe, Outcome::Refused, now).is_some());
        }
        assert_eq!(
            asked,
            [
                "192.0.2.1 1/tcp",
                "192.0.2.2 1/tcp",
                "2001:db8::1 1/tcp",
                "192.0.2.2 2/tcp",
                "192.0.2.1 2/tcp",
                "192.0.2.2 3/tcp",
                "2001:db8::1 2/tcp"
            ]
        );
        assert_eq!(schedule.next(now), Step::Done);
    }

    #[test]
    fn one_slow_node_does_not_hold_up_the_others() {
        let lanes = vec![lane(&["192.0.2.1"], &["1/tcp", "2/tcp"]), lane(&["192.0.2.2"], &["1/tcp"])];
        let rate = NonZeroU32::new(1_000_000).unwrap();
        let mut schedule = Schedule::new(lanes, rate, NonZeroU32::new(1));
        let now = Instant::now();
        assert_eq!(ask(&mut schedule, now).lane, 0);
        assert_eq!(ask(&mut schedule, now).lane, 1);
        let Step::Wait(Some(due)) = schedule.next(now) else { panic!("the bucket of node 0 is empty") };
        assert_eq!(due.duration_since(now).as_secs_f64().round(), 1.0);
        assert_eq!(ask(&mut schedule, due).lane, 0);
    }
}
