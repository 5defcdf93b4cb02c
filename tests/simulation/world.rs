//! Simulated time: machines, agents, links, and what happens to them in which order.

mod agents;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use deadlight_agent::config::Config;
use deadlight_agent::node::Node;
use deadlight_agent::plan;
use deadlight_agent::reconcile::{End, Pace};
use deadlight_scanner::config::{Node as ScannedNode, Way};
use deadlight_scanner::deliver::DeliverError;
use deadlight_scanner::prove::Question;
use deadlight_shared::wire::{Cause, CauseKind, Mode, Order, OrderMark, Outcome, OutcomeStatus, Report};
use deadlight_shared::{FindingStatus, Name, Port, PortSet, Protocol};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};

use crate::course::{Course, EVERY, Fault, Happening, MINUTE, STORM, Trouble};
use crate::host::{Clock, Machine, Rig};
use crate::oracle::Oracle;
use crate::planted::Planted;
use crate::scanner::{AGENT, Scanner};

/// How long an attempt of a second look waits.
pub(crate) const ATTEMPT: Duration = Duration::from_millis(900);
/// The storm, half an hour, and some more hours of which only the clocks know.
const END: Duration = Duration::from_secs(9_000 + 110 * 60);
/// What a look at the kernel is said to cost, so that a calm agent looks every five minutes.
const LOOK: Duration = Duration::from_millis(1_500);

pub(crate) struct World {
    pub(crate) now: Duration,
    /// The instant that the product's state machines take for the beginning.
    pub(crate) base: Instant,
    pub(crate) clock: Clock,
    pub(crate) rng: Rng,
    queue: BTreeMap<(Duration, u64), Event>,
    count: u64,
    pub(crate) names: Vec<Name>,
    pub(crate) addresses: Vec<Vec<IpAddr>>,
    course: Course,
    ssh: Port,
    agent: Port,
    swept: Vec<Port>,
    mesh: BTreeSet<Port>,
    local: BTreeSet<(usize, Port)>,
    machines: Vec<Rig>,
    agents: Vec<Agent>,
    /// The machine that answers at each node's addresses.
    front: Vec<usize>,
    pub(crate) scanners: Vec<Scanner>,
    pub(crate) links: BTreeMap<(usize, usize), Link>,
    captured: Vec<(usize, Order)>,
    pub(crate) oracle: Oracle,
    pub(crate) story: Vec<String>,
    pub(crate) planted: Option<Planted>,
}

struct Agent {
    of: usize,
    process: Option<Node>,
    life: u64,
    pace: Pace,
    lies: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) there: bool,
    pub(crate) back: bool,
    pub(crate) loss: f64,
    /// Nothing passes in every other stretch of some 0.7 s, at random.
    pub(crate) flaps: bool,
}

/// What is due. The second number of those that belong to a process is its life.
pub(crate) enum Event {
    Happens(usize),
    Begins(usize),
    Ends(usize),
    Calm,
    Hours(i64),
    AgentStarts(usize),
    AgentLooks(usize, u64),
    NodeIsUp(usize),
    ScannerStarts(usize),
    Round(usize, u64),
    Sweeps(usize, u64, u8),
    OrderArrives {
        scanner: usize,
        life: u64,
        node: usize,
        order: Box<Order>,
    },
    AnswerArrives {
        scanner: usize,
        life: u64,
        order: OrderMark,
        node: usize,
        answer: Box<Result<Report, DeliverError>>,
    },
    AnswersAreDue(usize, u64, OrderMark),
    Looks(usize, u64),
    ProbeArrives {
        scanner: usize,
        life: u64,
        window: usize,
        question: Question,
        sent: Duration,
    },
    ProbeEnds {
        scanner: usize,
        life: u64,
        window: usize,
        question: Question,
        sent: Duration,
        reply: Probed,
    },
    Turns(usize),
}

/// What a probe meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probed {
    Open,
    Refused,
    Silent,
}

impl World {
    pub(crate) fn new(course: Course, seed: u64) -> Self {
        let clock: Clock = Arc::new(Mutex::new("2026-11-25T00:00:00Z".parse::<Timestamp>().unwrap()));
        let count = course.nodes.len();
        let names: Vec<Name> = (1..=count).map(|number| format!("n{number}").parse().unwrap()).collect();
        let both = |number| [format!("198.51.100.{number}"), format!("2001:db8::{number}")];
        let addresses: Vec<Vec<IpAddr>> =
            (1..=count).map(|number| both(number).iter().map(|address| address.parse().unwrap()).collect()).collect();
        let (ssh, agent): (Port, Port) = ("22/tcp".parse().unwrap(), AGENT.parse().unwrap());
        let control = |index: usize| course.nodes[index].controlled_by_ssh.then_some(ssh);
        let scanned = |index: usize| ScannedNode {
            name: names[index].clone(),
            addresses: addresses[index].clone(),
            agent: Some(Way::Push(format!("https://198.51.100.{}:7443", index + 1).parse().unwrap())),
            labels: Vec::new(),
            control: control(index),
        };
        let scanned: Vec<ScannedNode> = (0..count).map(scanned).collect();
        let scanners = course.scanners.iter();
        let scanners = scanners.map(|setup| Scanner::new(setup.name, scanned.clone(), &course.swept, &setup.allow));
        let machine = |index: usize| Machine::new(addresses[index].clone(), [(ssh, "sshd")].into(), Arc::clone(&clock));
        let own = |index: usize| control(index).into_iter().chain([agent]).collect::<PortSet>();
        let never = |index: usize| {
            let mut never: PortSet = "22,2377,7946/tcp,4789,7946/udp,7443/tcp".parse().unwrap();
            never.extend(&course.nodes[index].protected);
            never
        };
        let oracle = Oracle::new(
            names.clone(),
            (0..count).map(own).collect(),
            (0..count).map(never).collect(),
            course.scanners.iter().map(|setup| setup.allow.clone()).collect(),
        );
        let base = Instant::now();
        let mut world = Self {
            now: Duration::ZERO,
            base,
            rng: Rng::with_seed(seed),
            queue: BTreeMap::new(),
            count: 0,
            ssh,
            agent,
            swept: course.swept.iter().collect(),
            mesh: BTreeSet::new(),
            local: BTreeSet::new(),
            machines: (0..count).map(|index| Rig::new(machine(index))).collect(),
            agents: (0..count).map(|of| Agent::new(of, base)).collect(),
            front: (0..count).collect(),
            scanners: scanners.collect(),
            links: BTreeMap::new(),
            captured: Vec::new(),
            clock: Arc::clone(&clock),
            names,
            addresses,
            oracle,
            story: Vec::new(),
            planted: None,
            course,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for node in 0..self.names.len() {
            for scanner in 0..self.scanners.len() {
                self.links.insert((scanner, node), Link { there: true, back: true, loss: 0.0, flaps: false });
            }
            self.at(Duration::ZERO, Event::AgentStarts(node));
        }
        for scanner in 0..self.scanners.len() {
            let at = EVERY.mul_f64(self.rng.f64());
            self.at(at, Event::ScannerStarts(scanner));
        }
        for index in 0..self.course.events.len() {
            self.at(self.course.events[index].0, Event::Happens(index));
        }
        for index in 0..self.course.faults.len() {
            self.at(self.course.faults[index].at, Event::Begins(index));
            self.at(self.course.faults[index].until, Event::Ends(index));
        }
        self.at(STORM, Event::Calm);
        // Budgets of an hour and epochs of a day ahead have their end.
        for (minutes, hours) in [(30, 25), (50, 1), (70, 1), (90, 1)] {
            self.at(STORM + MINUTE * minutes, Event::Hours(hours));
        }
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event) {
        self.count += 1;
        self.queue.insert((at.max(self.now), self.count), event);
    }

    pub(crate) fn after(&mut self, pause: Duration, event: Event) {
        self.at(self.now + pause, event);
    }

    /// Plays everything; what the end looks like from outside.
    pub(crate) fn play(&mut self) -> Vec<String> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > END {
                break;
            }
            let passed = SignedDuration::try_from(at - self.now).unwrap();
            *self.clock.lock().unwrap() += passed;
            self.now = at;
            if self.take(event) {
                self.observe();
            }
        }
        self.end()
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>8.1} {}", self.now.as_secs_f64(), line());
        self.story.push(line);
    }

    /// Calls of agents at their machines, at each of which they might have died.
    pub(crate) fn calls(&self) -> u64 {
        self.machines.iter().map(|machine| machine.lock().calls).sum()
    }

    /// Whether nodes or links may have changed.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Happens(index) => self.happens(index),
            Event::Begins(index) => self.begins(index),
            Event::Ends(index) => self.ends(index),
            Event::Calm => self.calm(),
            Event::Hours(hours) => *self.clock.lock().unwrap() += SignedDuration::from_hours(hours),
            Event::AgentStarts(machine) => self.agent_starts(machine),
            Event::AgentLooks(machine, life) if self.agents[machine].life == life => self.agent_looks(machine, false),
            Event::NodeIsUp(machine) => self.machines[machine].lock().up = true,
            Event::OrderArrives { scanner, life, node, order } => self.order_arrives(scanner, life, node, &order),
            Event::Turns(node) => self.turns(node),
            event => {
                self.take_scanners(event);
                return false;
            }
        }
        true
    }

    fn happens(&mut self, index: usize) {
        let what = self.course.events[index].1.clone();
        self.tell(|| format!("{what:?}"));
        match what {
            Happening::Mesh(port, true) => drop(self.mesh.insert(port)),
            Happening::Mesh(port, false) => drop(self.mesh.remove(&port)),
            Happening::Local(node, port, true) => drop(self.local.insert((node, port))),
            Happening::Local(node, port, false) => drop(self.local.remove(&(node, port))),
            Happening::Allow(scanner, port) => {
                self.course.scanners[scanner].allow.insert(port);
                self.oracle.allow(scanner, port);
                let allow = self.course.scanners[scanner].allow.clone();
                self.scanners[scanner].allow(allow);
                self.scanner_dies(scanner, Duration::from_secs(1));
            }
        }
    }

    /// Whether `port` of `node` is open to whoever reaches it.
    pub(crate) fn is_open(&self, node: usize, port: Port) -> bool {
        let machine = self.machines[self.front[node]].lock();
        machine.up && self.is_served(node, port) && !machine.shuts(port)
    }

    fn is_served(&self, node: usize, port: Port) -> bool {
        self.mesh.contains(&port)
            || self.local.contains(&(node, port))
            || port == self.ssh
            || port == self.agent && self.agents[self.front[node]].process.is_some()
    }

    /// Whether a scanner needs `port` to be open.
    pub(crate) fn is_needed(&self, node: usize, port: Port) -> bool {
        port == self.agent || port == self.ssh && self.course.nodes[node].controlled_by_ssh
    }

    /// What a probe at `port` of `node` meets.
    pub(crate) fn probed(&self, node: usize, port: Port) -> Probed {
        let machine = self.machines[self.front[node]].lock();
        match (machine.up, machine.shuts(port), port.protocol) {
            (false, ..) | (true, true, Protocol::Tcp) => Probed::Silent,
            (true, true, Protocol::Udp) => Probed::Refused,
            (true, false, _) => match self.is_served(node, port) {
                true => Probed::Open,
                false => Probed::Refused,
            },
        }
    }

    /// Everything that must hold now.
    fn observe(&mut self) {
        for node in 0..self.names.len() {
            for index in 0..self.swept.len() {
                let port = self.swept[index];
                let open = self.is_open(node, port);
                self.oracle.port_is(self.now, node, port, open);
            }
            for scanner in 0..self.scanners.len() {
                let link = self.links[&(scanner, node)];
                self.oracle.way_is(self.now, scanner, node, link.there && link.back && !link.flaps);
            }
        }
        for (agent, machine) in self.agents.iter().zip(&self.machines) {
            self.oracle.look_at(agent.of, &machine.lock());
        }
    }

    pub(crate) fn scanner_dies(&mut self, scanner: usize, pause: Duration) {
        self.tell(|| format!("scanner {scanner} is dead"));
        self.scanners[scanner].stop();
        self.after(pause, Event::ScannerStarts(scanner));
    }

    /// What the end looks like from outside, after everything that must hold then was checked.
    fn end(&self) -> Vec<String> {
        let mut end = Vec::new();
        for (node, name) in self.names.iter().enumerate() {
            for port in self.course.swept.iter() {
                let open = self.is_open(node, port);
                let stays = !self.course.nodes[node].enforces
                    || self.oracle.is_protected(node, port)
                    || !self.oracle.is_unexpected(node, port);
                let expected = self.is_served(node, port) && stays;
                assert_eq!(open, expected, "{port} of {name} at the end");
                end.push(format!("{name} {port} {}", if open { "open" } else { "shut" }));
            }
            let tables = &self.machines[node].lock().tables;
            assert!(tables.iter().all(|table| *table == tables[0]), "{name} ends with different tables");
        }
        for (index, scanner) in self.scanners.iter().enumerate() {
            assert!(scanner.rounds > 5, "scanner {index} ended {} rounds", scanner.rounds);
            let findings = scanner.store.as_ref().map_or(&[][..], deadlight_scanner::store::Store::findings);
            for finding in findings {
                // Who observes holds some back for a budget that is never spent: which, goes by their order.
                let status = match finding.status {
                    FindingStatus::Reported => "observed",
                    status => status.as_str(),
                };
                if !matches!(status, "resolved" | "accepted") {
                    end.push(format!("{index}: {} {} {status}", finding.address, finding.port()));
                }
            }
        }
        end.sort();
        end
    }
}

impl Link {
    /// Whether it is in one of its outages.
    pub(crate) fn is_out(&self, now: Duration) -> bool {
        let stretch = u64::try_from(now.as_millis() / 700).unwrap_or(0);
        self.flaps && Rng::with_seed(stretch).bool()
    }

    pub(crate) fn passes(&self, now: Duration) -> bool {
        self.there && self.back && !self.is_out(now)
    }
}
