//! The rounds of a scanner in simulated time: what `cli/run/round.rs` does, with simulated packets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use deadlight_scanner::deliver::{DeliverError, accept};
use deadlight_scanner::permits::Permits;
use deadlight_scanner::probe::Payloads;
use deadlight_scanner::prove::{Question, Reply, Step, Window};
use deadlight_scanner::round::{self, News, Scope, Turn};
use deadlight_scanner::sweep::Checked;
use deadlight_shared::wire::{OrderMark, Report};
use deadlight_shared::{Name, PortState};
use jiff::tz::TimeZone;

use crate::course::EVERY;
use crate::planted::Planted;
use crate::scanner::{Looking, Phase, Sweeping, Target};
use crate::world::{ATTEMPT, Event, Probed, World};

/// Instants of a sweep, and how far they are apart on average.
const INSTANTS: u8 = 4;
const BETWEEN: Duration = Duration::from_millis(1_500);
/// One round in so many is a quick one.
const QUICK: u8 = 3;
/// An order is given up after this.
const ANSWER: Duration = Duration::from_secs(60);

impl World {
    pub(crate) fn take_scanners(&mut self, event: Event) {
        let lives = |scanner: usize, life: u64| self.scanners[scanner].life == life;
        match event {
            Event::ScannerStarts(scanner) => self.scanner_starts(scanner),
            Event::Round(scanner, life) if lives(scanner, life) => self.begin_round(scanner),
            Event::Sweeps(scanner, life, instant) if lives(scanner, life) => self.sweep(scanner, instant),
            Event::AnswerArrives { scanner, life, order, node, answer } if lives(scanner, life) => {
                self.answer_arrives(scanner, node, order, *answer);
            }
            Event::AnswersAreDue(scanner, life, order) if lives(scanner, life) => self.no_more_answers(scanner, order),
            Event::Looks(scanner, life) if lives(scanner, life) => self.look(scanner),
            Event::ProbeArrives { scanner, life, window, question, sent } if lives(scanner, life) => {
                self.probe_arrives(scanner, window, question, sent);
            }
            Event::ProbeEnds { scanner, life, window, question, sent, reply } if lives(scanner, life) => {
                self.probe_ends(scanner, window, question, sent, reply);
            }
            _ => {}
        }
    }

    fn scanner_starts(&mut self, scanner: usize) {
        self.oracle.starts(scanner);
        self.scanners[scanner].start(&self.clock);
        let life = self.scanners[scanner].life;
        self.after(Duration::ZERO, Event::Round(scanner, life));
    }

    fn begin_round(&mut self, scanner: usize) {
        let proven = self.oracle.proven_on_disk(scanner);
        let process = &mut self.scanners[scanner];
        process.round_began = self.now;
        let state = process.disk.0.lock().unwrap().state.clone();
        process.backups.push((self.now, state, proven));
        let Some(store) = &process.store else { return };
        let started = process.wall(&self.clock);
        let today = started.to_zoned(TimeZone::UTC).date();
        let expectations = process.config.expectations(today);
        let scope = if self.rng.u8(..QUICK) == 0 { Scope::Quick } else { Scope::Full };
        let plan = round::plan(&process.config, scope, &expectations, store.state(), &Payloads::default());
        let mut targets = Vec::new();
        for (node, planned) in plan.nodes.iter().enumerate() {
            for &address in &planned.addresses {
                targets.extend(planned.ports.iter().map(|port| Target {
                    node,
                    address,
                    port,
                    watched: planned.watched.contains(port),
                    instant: self.rng.u8(..INSTANTS),
                    state: None,
                }));
            }
        }
        let sweeping = Sweeping { scope, began: self.now, started, targets, heard: BTreeSet::new() };
        process.phase = Phase::Sweeping(sweeping);
        let life = process.life;
        self.after(Duration::from_millis(10), Event::Sweeps(scanner, life, 0));
    }

    /// One instant of a sweep: loss is what the engine's own simulation is about, and does not count here.
    fn sweep(&mut self, scanner: usize, instant: u8) {
        let life = self.scanners[scanner].life;
        let Phase::Sweeping(mut sweeping) = std::mem::replace(&mut self.scanners[scanner].phase, Phase::Idle) else {
            return;
        };
        for target in sweeping.targets.iter_mut().filter(|target| target.instant <= instant && target.state.is_none()) {
            let link = self.links[&(scanner, target.node)];
            if !link.passes(self.now) {
                continue;
            }
            let is_needed = self.is_needed(target.node, target.port);
            target.state = match self.probed(target.node, target.port) {
                Probed::Open if self.planted == Some(Planted::BlindSweep) && !is_needed => None,
                Probed::Open => Some(PortState::Open),
                Probed::Refused => Some(PortState::Closed),
                Probed::Silent => None,
            };
            if target.state.is_some() {
                sweeping.heard.insert(target.address);
            }
        }
        if instant + 1 < INSTANTS {
            self.scanners[scanner].phase = Phase::Sweeping(sweeping);
            let pause = BETWEEN.mul_f64(0.2 + self.rng.f64());
            self.after(pause, Event::Sweeps(scanner, life, instant + 1));
            return;
        }
        self.end_sweep(scanner, sweeping);
    }

    fn end_sweep(&mut self, scanner: usize, mut sweeping: Sweeping) {
        for (node, scanned) in self.scanners[scanner].config.nodes.iter().enumerate() {
            let link = self.links[&(scanner, node)];
            let hears = link.passes(self.now);
            let answers = scanned.control_port().is_some_and(|port| hears && self.is_open(node, port));
            if !answers {
                sweeping.heard.retain(|address| !self.addresses[node].contains(address));
            }
        }
        let Self { scanners, oracle, clock, names, addresses, now, .. } = self;
        let process = &mut scanners[scanner];
        let wall = process.wall(clock);
        let today = wall.to_zoned(TimeZone::UTC).date();
        let (began, took, scope) = (sweeping.began, *now - sweeping.began, sweeping.scope);
        let asked = sweeping.targets.iter().map(|target| (target.address, target.port)).collect();
        let sweep = sweeping.finish(names, wall, took);
        let Some(store) = &mut process.store else { return };
        let tell = |news: News<'_>| {
            if let News::Swept { assessment, .. } = news {
                oracle.swept(scanner, (began, *now), &asked, &assessment.exposed, addresses);
            }
        };
        let turn = Turn::begin(&process.config, today, scope, sweep, store, tell);
        let orders = turn.orders(&process.config, &Permits::default(), store, wall);
        process.disk.write(store);
        if self.has_died(scanner) {
            return;
        }
        let mut sent = BTreeMap::new();
        for order in orders {
            assert_eq!(order.check(), Ok(()));
            let node = self.names.iter().position(|name| *name == order.node).unwrap();
            sent.insert(order.node.clone(), order.clone());
            self.send(scanner, node, order);
        }
        let mark = sent.values().map(|order| OrderMark { epoch: order.epoch, sequence: order.sequence }).max();
        self.scanners[scanner].phase = Phase::Ordering { turn, orders: sent, answers: BTreeMap::new() };
        let life = self.scanners[scanner].life;
        if let Some(mark) = mark {
            self.after(ANSWER, Event::AnswersAreDue(scanner, life, mark));
        }
    }

    fn answer_arrives(&mut self, scanner: usize, node: usize, mark: OrderMark, answer: Result<Report, DeliverError>) {
        let name = self.names[node].clone();
        let process = &mut self.scanners[scanner];
        let wall = process.wall(&self.clock);
        let Phase::Ordering { orders, answers, .. } = &mut process.phase else { return };
        let order = &orders[&name];
        if answers.contains_key(&name) || mark != (OrderMark { epoch: order.epoch, sequence: order.sequence }) {
            return;
        }
        let accepted = answer
            .and_then(|report| accept(report, &order.node, OrderMark { epoch: order.epoch, sequence: order.sequence }));
        if let (true, Some(store)) = (accepted.as_ref().is_err_and(DeliverError::is_untimely), &mut process.store) {
            store.begin_epoch(wall);
        }
        let accepted = accepted.map_err(io::Error::other);
        answers.insert(name, accepted);
        if answers.len() == orders.len() {
            self.take_answers(scanner);
        }
    }

    fn no_more_answers(&mut self, scanner: usize, mark: OrderMark) {
        let Phase::Ordering { orders, answers, .. } = &mut self.scanners[scanner].phase else { return };
        if !orders.values().any(|order| mark == (OrderMark { epoch: order.epoch, sequence: order.sequence })) {
            return;
        }
        for name in orders.keys() {
            answers.entry(name.clone()).or_insert_with(|| Err(io::ErrorKind::TimedOut.into()));
        }
        self.take_answers(scanner);
    }

    fn take_answers(&mut self, scanner: usize) {
        let phase = std::mem::replace(&mut self.scanners[scanner].phase, Phase::Idle);
        let Phase::Ordering { mut turn, orders, answers } = phase else { return };
        let said: Vec<String> = answers.iter().map(|(name, answer)| summary(name, answer)).collect();
        self.tell(|| format!("scanner {scanner} hears {}", said.join("; ")));
        let Self { scanners, oracle, now, clock, .. } = self;
        let process = &mut scanners[scanner];
        let process_wall = process.wall(clock);
        let Some(store) = &mut process.store else { return };
        let mut tell = |news: News<'_>| match news {
            News::Answered { report, .. } => oracle.reported(*now, scanner, report, &orders[&report.node]),
            News::Unanswered { node, .. } => oracle.unanswered(scanner, &node.name),
            _ => {}
        };
        turn.answered(&process.config, answers, store, process_wall, &mut tell);
        process.disk.write(store);
        let rescans = turn.looks(&process.config, &mut tell);
        if self.has_died(scanner) {
            return;
        }
        let start = self.base + self.now;
        let windows = rescans
            .iter()
            .map(|rescan| Window::new(rescan.ports.iter().copied(), rescan.control, start, self.rng.fork()));
        let windows = windows.collect();
        let began = self.now;
        self.scanners[scanner].phase =
            Phase::Looking(Looking { turn, rescans, windows, began, source_port: 40_000, wake: None });
        self.look(scanner);
    }

    /// Sends whatever is due, and ends the look when nothing is left.
    fn look(&mut self, scanner: usize) {
        let now = self.now;
        let life = self.scanners[scanner].life;
        let Phase::Looking(looking) = &mut self.scanners[scanner].phase else { return };
        let (mut asked, mut wake, mut done) = (Vec::new(), None::<Duration>, true);
        for (index, window) in looking.windows.iter_mut().enumerate() {
            loop {
                match window.next(self.base + now) {
                    Step::Done => break,
                    Step::Ask(question) => {
                        window.sent(question, self.base + now);
                        asked.push((index, question));
                    }
                    Step::Wait(due) => {
                        done = false;
                        let due = due.map(|due| due - self.base);
                        wake = due.into_iter().chain(wake).min();
                        break;
                    }
                }
            }
        }
        let sooner = wake.filter(|due| looking.wake.is_none_or(|wake| wake <= now || *due < wake));
        if sooner.is_some() {
            looking.wake = sooner;
        }
        let nodes: Vec<usize> = asked.iter().map(|(window, _)| self.node_of(scanner, *window)).collect();
        for ((window, question), node) in asked.into_iter().zip(nodes) {
            let link = self.links[&(scanner, node)];
            match link.there && !link.is_out(self.now) && self.rng.f64() >= link.loss {
                true => {
                    let pause = Duration::from_millis(self.rng.u64(1..100));
                    self.after(pause, Event::ProbeArrives { scanner, life, window, question, sent: now });
                }
                false => {
                    let reply = Probed::Silent;
                    self.after(ATTEMPT, Event::ProbeEnds { scanner, life, window, question, sent: now, reply });
                }
            }
        }
        if done {
            return self.end_look(scanner);
        }
        if let Some(due) = sooner {
            self.at(due, Event::Looks(scanner, life));
        }
    }

    fn node_of(&self, scanner: usize, window: usize) -> usize {
        let Phase::Looking(looking) = &self.scanners[scanner].phase else { panic!("no look") };
        self.names.iter().position(|name| *name == looking.rescans[window].node).unwrap()
    }

    fn probe_arrives(&mut self, scanner: usize, window: usize, question: Question, sent: Duration) {
        let (Phase::Looking(_), life) = (&self.scanners[scanner].phase, self.scanners[scanner].life) else { return };
        let node = self.node_of(scanner, window);
        let (Question::Control(port) | Question::Proof(_, port)) = question;
        let link = self.links[&(scanner, node)];
        let at = self.now + Duration::from_millis(self.rng.u64(1..100));
        let comes_back = link.back && !link.is_out(self.now) && self.rng.f64() >= link.loss;
        let is_false = self.planted == Some(Planted::FalseProof) && matches!(question, Question::Proof(..));
        let (at, reply) = match self.probed(node, port) {
            Probed::Open if is_false && comes_back => (at, Probed::Refused),
            reply @ (Probed::Open | Probed::Refused) if comes_back => (at, reply),
            _ => (sent + ATTEMPT, Probed::Silent),
        };
        self.at(at, Event::ProbeEnds { scanner, life, window, question, sent, reply });
    }

    fn probe_ends(&mut self, scanner: usize, window: usize, question: Question, sent: Duration, reply: Probed) {
        let Phase::Looking(looking) = &mut self.scanners[scanner].phase else { return };
        let reply = match reply {
            Probed::Open => Reply::Answered,
            Probed::Refused => Reply::Refused,
            Probed::Silent => Reply::Silent,
        };
        looking.source_port = looking.source_port.wrapping_add(1);
        looking.windows[window].record(question, self.base + sent, Some(looking.source_port), reply);
        self.look(scanner);
    }

    fn end_look(&mut self, scanner: usize) {
        let phase = std::mem::replace(&mut self.scanners[scanner].phase, Phase::Idle);
        let Phase::Looking(Looking { mut turn, rescans, windows, began, .. }) = phase else { return };
        let mut checked = Vec::new();
        for (rescan, window) in rescans.iter().zip(&windows) {
            let (node, address) = (&rescan.node, rescan.address);
            checked.extend(window.verdicts().map(|(port, verdict)| Checked {
                node: node.clone(),
                address,
                port,
                verdict,
            }));
        }
        for Checked { address, port, verdict, .. } in &checked {
            self.tell(|| format!("scanner {scanner} finds {port} at {address} {verdict:?}"));
        }
        let Self { scanners, oracle, clock, now, .. } = self;
        let process = &mut scanners[scanner];
        let wall = process.wall(clock);
        let Some(store) = &mut process.store else { return };
        oracle.checked(scanner, (began, *now), &checked);
        let tells = self.planted != Some(Planted::Discreet);
        let mut tell = |news: News<'_>| {
            if let (News::Contradicted(contradiction), true) = (news, tells) {
                oracle.contradicted(scanner, contradiction);
            }
        };
        turn.looked(&checked, store, wall, &mut tell);
        turn.end(&process.config, store, wall, &mut tell);
        process.disk.write(store);
        if self.has_died(scanner) {
            return;
        }
        self.oracle.ended(self.now, scanner);
        let process = &mut self.scanners[scanner];
        process.rounds += 1;
        let (life, next) = (process.life, process.round_began + EVERY);
        self.at(next, Event::Round(scanner, life));
    }

    /// Whether `scanner` died at its last writes; what it left on its disk is looked at in any case.
    fn has_died(&mut self, scanner: usize) -> bool {
        let dead = {
            let mut disk = self.scanners[scanner].disk.0.lock().unwrap();
            let written = std::mem::take(&mut disk.written);
            if written {
                self.oracle.kept(scanner, &disk.state);
            }
            disk.dead
        };
        if dead {
            self.scanner_dies(scanner, Duration::from_secs(30));
        }
        dead
    }
}

fn summary(name: &Name, answer: &Result<Report, io::Error>) -> String {
    match answer {
        Err(error) => format!("{name}: {error}"),
        Ok(report) => {
            let outcomes = report.outcomes.iter();
            let outcomes: Vec<_> = outcomes.map(|o| format!("{} {}", o.port(), o.status.as_str())).collect();
            format!("{name}: {}", outcomes.join(", "))
        }
    }
}
