//! An engine driven with sockets of the kernel: TCP by connect, and UDP.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use deadlight_shared::Port;
use tokio::task::JoinSet;

use super::found::{By, Driven, Notice};
use crate::net;
use crate::probe::{Engine, Outcome, Payloads, Probe, Reply, Step};

/// Pause of all probes after a shortage of this host.
const AFTER_SHORTAGE: Duration = Duration::from_millis(100);
/// Shortages at one port before it counts as not asked.
const MOST_SHORTAGES: u32 = 20;

/// Runs `engine` to its end, or until the sweep is stopped.
pub(super) async fn run(engine: Engine, notice: Notice, payloads: &Payloads, in_flight: usize) -> Driven {
    let mut driver = Driver { engine, notice, shortages: HashMap::new(), paused: None };
    let mut asking: JoinSet<(Probe, Outcome)> = JoinSet::new();
    loop {
        let due = match driver.fill(&mut asking, payloads, in_flight) {
            None => break,
            Some(due) => due,
        };
        let joined = tokio::select! {
            joined = asking.join_next(), if !asking.is_empty() => joined,
            () = tokio::time::sleep_until(due.into()), if asking.len() < in_flight => None,
            () = driver.notice.stopped() => break,
        };
        let mut next = joined;
        while let Some(joined) = next {
            driver.record(joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
            next = asking.try_join_next();
        }
    }
    driver.notice.end(driver.engine)
}

struct Driver {
    engine: Engine,
    notice: Notice,
    shortages: HashMap<(usize, u16), u32>,
    paused: Option<Instant>,
}

impl Driver {
    /// Starts as many probes as engine and descriptors allow; when there may be more, `None` at the end.
    fn fill(
        &mut self,
        asking: &mut JoinSet<(Probe, Outcome)>,
        payloads: &Payloads,
        in_flight: usize,
    ) -> Option<Instant> {
        loop {
            let now = Instant::now();
            if let Some(end) = self.paused.filter(|end| *end > now) {
                return Some(end);
            }
            if asking.len() >= in_flight {
                return Some(now);
            }
            let probe = match self.engine.next(now) {
                Step::Ask(probe) => probe,
                Step::Wait(due) => return Some(due),
                Step::Done => return None,
            };
            let lane = self.engine.lane(probe.lane);
            let Some(port) = Port::new(lane.protocol, probe.port) else {
                self.engine.not_asked(probe, "port 0 cannot be asked", now);
                continue;
            };
            let (address, attempt) = (lane.address, probe.attempt());
            let payloads = payloads.clone();
            self.notice.asked(probe);
            asking.spawn(async move {
                let payload = payloads.of(probe.port, attempt);
                (probe, net::ask(address, port, payload, probe.limit).await.outcome)
            });
        }
    }

    fn record(&mut self, (probe, outcome): (Probe, Outcome)) {
        let now = Instant::now();
        let (reply, by) = match outcome {
            Outcome::Answered { own_host: false } => (Reply::Answered, By::Socket),
            Outcome::Answered { own_host: true } => (Reply::Answered, By::SocketOfThisHost),
            Outcome::Refused => (Reply::Refused, By::Socket),
            Outcome::Unreachable => (Reply::Unreachable, By::Socket),
            Outcome::Silent => return,
            Outcome::Short(reason) => return self.short(probe, &reason, now),
            Outcome::NotAsked(reason) => return self.engine.not_asked(probe, &reason, now),
        };
        if let Some((state, attempts)) = self.engine.heard(probe.lane, probe.port, probe.serial, reply, now) {
            self.notice.settled(self.engine.lane(probe.lane), probe.port, state, attempts, by);
        }
    }

    /// Waits for this host to have again what it was short of.
    fn short(&mut self, probe: Probe, reason: &str, now: Instant) {
        let shortages = self.shortages.entry((probe.lane, probe.port)).or_insert(0);
        *shortages += 1;
        match *shortages > MOST_SHORTAGES {
            true => self.engine.not_asked(probe, reason, now),
            false => {
                self.engine.unsent(probe, now);
                self.paused = Some(now + AFTER_SHORTAGE);
            }
        }
    }
}
