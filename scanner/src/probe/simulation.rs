//! A network in virtual time: hosts that behave as hosts on the internet do, and links that lose,
//! delay, repeat and reorder.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadlight_shared::{PortState, Protocol};
use fastrand::Rng;

use super::packet::{Answer, AnswerKind, LONGEST, tests as craft};
use super::{Cookie, Cost, Engine, Heard, Lane, Limits, Pacer, SynStep, SynSweep};

/// How a simulated host treats a SYN to a port that is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shut {
    Reset,
    Silent,
    Unreachable,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) open: BTreeSet<u16>,
    pub(crate) shut: Shut,
    /// RSTs and ICMP messages a second, where they are rationed.
    pub(crate) ration: Option<Pacer>,
    /// Packets a second that its line carries.
    pub(crate) line: Option<Pacer>,
    /// It says nothing any more after this time.
    pub(crate) dies: Option<Duration>,
}

impl Host {
    pub(crate) fn new(shut: Shut, open: impl IntoIterator<Item = u16>) -> Self {
        Self { open: open.into_iter().collect(), shut, ration: None, line: None, dies: None }
    }
}

/// The links, each way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Links {
    pub(crate) loss: f64,
    pub(crate) delay: Duration,
    /// Added at random, so that packets overtake each other.
    pub(crate) jitter: Duration,
    pub(crate) twice: f64,
    /// For each SYN somebody who did not see it sends answers at random.
    pub(crate) forged: bool,
    /// Nothing passes in this stretch of time.
    pub(crate) outage: Option<(Duration, Duration)>,
}

pub(crate) struct Network {
    pub(crate) hosts: BTreeMap<IpAddr, Host>,
    pub(crate) links: Links,
    rng: Rng,
    start: Instant,
    /// On their way to us: when, a number to tell them apart, and the packet.
    flying: BinaryHeap<std::cmp::Reverse<(Instant, u64, Vec<u8>)>>,
    count: u64,
    pub(crate) syns: u64,
    /// Handshakes that our kernel has reset: no SYN-ACK is repeated for them.
    reset: HashMap<(IpAddr, u16, u16), Instant>,
}

/// What a sweep made of the network.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    pub(crate) open: BTreeSet<(IpAddr, u16)>,
    pub(crate) closed: u64,
    pub(crate) filtered: u64,
    pub(crate) unreachable: u64,
    pub(crate) unknown: Vec<(String, usize)>,
    pub(crate) took: Duration,
    pub(crate) most_attempts: u32,
}

impl Network {
    pub(crate) fn new(
        start: Instant,
        seed: u64,
        links: Links,
        hosts: impl IntoIterator<Item = (IpAddr, Host)>,
    ) -> Self {
        Self {
            hosts: hosts.into_iter().collect(),
            links,
            rng: Rng::with_seed(seed),
            start,
            flying: BinaryHeap::new(),
            count: 0,
            syns: 0,
            reset: HashMap::new(),
        }
    }

    /// Sweeps all hosts in virtual time; `ports` at each of them.
    pub(crate) fn sweep(&mut self, ports: &[u16], rate: u32) -> Verdicts {
        let ports: Arc<[u16]> = ports.into();
        let lane = |(node, address): (usize, &IpAddr)| Lane {
            node,
            address: *address,
            protocol: Protocol::Tcp,
            ports: Arc::clone(&ports),
        };
        let lanes: Vec<_> = self.hosts.keys().enumerate().map(lane).collect();
        let sources = lanes.iter().map(|lane| craft::ends(lane.address).source).collect();
        let rate = NonZeroU32::new(rate).unwrap();
        let engine = Engine::new(lanes, Limits { rate, rate_per_node: rate, cost: Cost::Packet }, self.rng.u64(..));
        let mut sweep = SynSweep::new(engine, Cookie::new([self.rng.u8(..); 16], 61_000), sources);
        let (mut verdicts, mut now) = (Verdicts::default(), self.start);
        let mut buffer = [0; LONGEST];
        loop {
            while let Some(packet) = self.arrived(now) {
                if let Some(heard) = sweep.receive(&packet, now) {
                    verdicts.hear(&sweep, heard);
                }
            }
            match sweep.next(now, &mut buffer) {
                SynStep::Done => break,
                SynStep::Send(_, length) => self.carry(&buffer[..length], now),
                SynStep::Wait(due) => {
                    let arrival = self.flying.peek().map_or(due, |flying| flying.0.0);
                    now = due.min(arrival).max(now + Duration::from_nanos(1));
                    assert!(now - self.start < Duration::from_secs(7_200), "no end after two hours");
                }
            }
        }
        verdicts.took = now - self.start;
        for (_, left) in sweep.engine().leftovers() {
            verdicts.most_attempts = verdicts.most_attempts.max(left.attempts);
            match left.unknown {
                Some(reason) => verdicts.unknown.push((reason, left.ports.len())),
                None if left.unreachable => verdicts.unreachable += left.ports.len() as u64,
                None => verdicts.filtered += left.ports.len() as u64,
            }
        }
        verdicts
    }

    /// One of our packets sets out.
    fn carry(&mut self, packet: &[u8], now: Instant) {
        self.syns += 1;
        let (ends, sequence) = craft::read_syn(packet);
        if self.links.forged {
            for kind in [AnswerKind::SynAck, AnswerKind::Reset, AnswerKind::Unreachable] {
                let guess = craft::answer(&Answer { ends, sequence: self.rng.u32(..), kind });
                self.fly(guess, now);
            }
        }
        if self.is_lost(now) {
            return;
        }
        let due = now + self.latency();
        let since = due - self.start;
        let Some(host) = self.hosts.get_mut(&ends.target) else { return };
        let carried = host.line.as_mut().is_none_or(|line| line.ready(due).map(|()| line.spend()).is_ok());
        if !carried || host.dies.is_some_and(|end| since >= end) {
            return;
        }
        let answer = |kind| craft::answer(&Answer { ends, sequence, kind });
        if host.open.contains(&ends.target_port) {
            let handshake = (ends.target, ends.target_port, ends.source_port);
            self.reset.remove(&handshake);
            for repetition in [0, 1, 3, 7] {
                let at = due + Duration::from_secs(repetition);
                if self.reset.get(&handshake).is_some_and(|reset| *reset <= at) {
                    break;
                }
                if let Some(arrival) = self.send_back(answer(AnswerKind::SynAck), at)
                    && !self.is_lost(arrival)
                {
                    let reset = arrival + self.latency();
                    self.reset.insert(handshake, reset);
                }
            }
            return;
        }
        let kind = match host.shut {
            Shut::Silent => return,
            Shut::Reset => AnswerKind::Reset,
            Shut::Unreachable => AnswerKind::Unreachable,
        };
        if host.ration.as_mut().is_none_or(|ration| ration.ready(due).map(|()| ration.spend()).is_ok()) {
            self.send_back(answer(kind), due);
        }
    }

    /// When a packet that sets out towards us arrives, unless it is lost.
    fn send_back(&mut self, packet: Vec<u8>, now: Instant) -> Option<Instant> {
        if self.is_lost(now) {
            return None;
        }
        let arrival = now + self.latency();
        if self.rng.f64() < self.links.twice {
            let again = now + self.latency();
            self.fly(packet.clone(), again);
        }
        self.fly(packet, arrival);
        Some(arrival)
    }

    fn fly(&mut self, packet: Vec<u8>, arrival: Instant) {
        self.count += 1;
        self.flying.push(std::cmp::Reverse((arrival, self.count, packet)));
    }

    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        let due = self.flying.peek().is_some_and(|flying| flying.0.0 <= now);
        due.then(|| self.flying.pop())?.map(|flying| flying.0.2)
    }

    fn is_lost(&mut self, now: Instant) -> bool {
        let since = now - self.start;
        self.rng.f64() < self.links.loss || self.links.outage.is_some_and(|(from, to)| (from..to).contains(&since))
    }

    fn latency(&mut self) -> Duration {
        self.links.delay + self.links.jitter.mul_f64(self.rng.f64())
    }
}

impl Verdicts {
    fn hear(&mut self, sweep: &SynSweep, heard: Heard) {
        let target = (sweep.engine().lane(heard.lane).address, heard.port);
        match heard.state {
            PortState::Open => assert!(self.open.insert(target), "{target:?} opened twice"),
            PortState::Closed => self.closed += 1,
            other => panic!("{target:?} became {other}"),
        }
    }
}
