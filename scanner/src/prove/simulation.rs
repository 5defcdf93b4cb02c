//! Proofs over a simulated network, in simulated time: loss, delay, reordering, duplicates, outages.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use deadlight_shared::Port;

use super::{Question, Reply, Step, Verdict, Window};

const CONTROL: &str = "7443/tcp";
/// How long an attempt waits for its reply.
const LIMIT: Duration = Duration::from_millis(900);

pub(super) struct Network {
    /// Chance of each packet to be lost, in each direction.
    pub(super) loss: f64,
    /// Chance of each packet to arrive twice.
    pub(super) duplicates: f64,
    /// A packet's time on its way, in milliseconds, drawn anew for each: packets overtake each other.
    pub(super) delay: (u64, u64),
    /// Nothing arrives from the first instant to the second of each of them.
    pub(super) outages: Vec<(Duration, Duration)>,
    /// What a port does that is not the control port.
    pub(super) port: Box<dyn Fn(Port) -> Reply>,
    pub(super) random: fastrand::Rng,
}

impl Network {
    pub(super) fn lossless(port: impl Fn(Port) -> Reply + 'static) -> Self {
        let random = fastrand::Rng::with_seed(1);
        Self { loss: 0.0, duplicates: 0.0, delay: (25, 25), outages: Vec::new(), port: Box::new(port), random }
    }

    /// With `loss`, delays, reordering and duplicates.
    fn rough(loss: f64, seed: u64, port: Reply) -> Self {
        let port = Box::new(move |_| port.clone());
        Self {
            loss,
            duplicates: 0.05,
            delay: (1, 200),
            outages: Vec::new(),
            port,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// When the copies of a packet that leaves at `sent` arrive.
    fn arrivals(&mut self, sent: Duration) -> Vec<Duration> {
        let copies = 1 + usize::from(self.random.f64() < self.duplicates);
        let arrivals = (0..copies).map(|_| sent + Duration::from_millis(self.random.u64(self.delay.0..=self.delay.1)));
        let arrivals: Vec<_> = arrivals.collect();
        let black = |at: &Duration| self.outages.iter().any(|(from, to)| (from..to).contains(&at));
        arrivals.into_iter().filter(|at| !black(at) && self.random.f64() >= self.loss).collect()
    }

    /// What a probe that leaves at `sent` comes to, and when.
    fn ask(&mut self, port: Port, sent: Duration) -> (Duration, Reply) {
        let reply = match port == CONTROL.parse().unwrap() {
            true => Reply::Answered,
            false => (self.port)(port),
        };
        let requests = self.arrivals(sent);
        let replies = requests.into_iter().flat_map(|at| self.arrivals(at)).min();
        match replies.filter(|at| *at < sent + LIMIT && reply != Reply::Silent) {
            Some(at) => (at, reply),
            None => (sent + LIMIT, Reply::Silent),
        }
    }
}

/// Plays a rescan from `start` to its end: the verdicts, and how long it took.
pub(super) fn play(
    start: Instant,
    ports: &[&str],
    control: Option<&str>,
    network: &mut Network,
) -> (Vec<Verdict>, Duration) {
    let ports: Vec<Port> = ports.iter().map(|port| port.parse().unwrap()).collect();
    let random = network.random.fork();
    let mut window = Window::new(ports, control.map(|port| port.parse().unwrap()), start, random);
    let mut asked: Vec<(Question, Duration, Reply)> = Vec::new();
    let mut arrivals: BinaryHeap<Reverse<(Duration, usize)>> = BinaryHeap::new();
    let mut now = Duration::ZERO;
    loop {
        assert!(now < Duration::from_secs(60), "no end after a minute");
        let due = match window.next(start + now) {
            Step::Done => return (window.verdicts().map(|(_, verdict)| verdict).collect(), now),
            Step::Ask(question) => {
                let (Question::Control(port) | Question::Proof(_, port)) = question;
                let (at, reply) = network.ask(port, now);
                arrivals.push(Reverse((at, asked.len())));
                asked.push((question, now, reply));
                window.sent(question, start + now);
                continue;
            }
            Step::Wait(due) => due.map(|due| due - start),
        };
        let arrival = arrivals.peek().map(|Reverse((at, _))| *at);
        now = due.into_iter().chain(arrival).min().unwrap();
        while let Some(&Reverse((_, index))) = arrivals.peek().filter(|Reverse((at, _))| *at <= now) {
            arrivals.pop();
            let (question, sent, reply) = asked[index].clone();
            window.record(question, start + sent, u16::try_from(40_000 + index).ok(), reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::{Evidence, Unproven};

    fn one(network: &mut Network) -> (Verdict, Duration) {
        let (mut verdicts, time) = play(Instant::now(), &["8080/tcp"], Some(CONTROL), network);
        (verdicts.remove(0), time)
    }

    #[test]
    fn an_open_port_is_never_said_to_be_closed() {
        let (mut seen, mut unproven) = (0, 0);
        for seed in 0..10_000 {
            let loss = 0.30 * f64::from(u32::try_from(seed % 1_000).unwrap()) / 999.0;
            match one(&mut Network::rough(loss, seed, Reply::Answered)).0 {
                Verdict::StillOpen => seen += 1,
                Verdict::Unproven(_) => unproven += 1,
                closed @ Verdict::Closed(_) => panic!("seed {seed}, loss {loss}: {closed:?}"),
            }
        }
        assert_eq!((seen, unproven), (10_000, 0));
    }

    #[test]
    fn an_outage_is_no_proof_whenever_it_begins_and_however_long_it_lasts() {
        for seed in 0..5_000 {
            let mut network = Network::rough(0.10, seed, Reply::Answered);
            let from = Duration::from_millis(network.random.u64(0..1_000));
            let length = [300, 1_500, 2_500, 10_000][usize::try_from(seed % 4).unwrap()];
            network.outages = vec![(from, from + Duration::from_millis(length))];
            let (verdict, _) = one(&mut network);
            assert!(!matches!(verdict, Verdict::Closed(_)), "seed {seed}: {verdict:?}");
        }
    }

    #[test]
    fn losses_in_bursts_are_no_proof() {
        for seed in 0..2_000 {
            let mut network = Network::rough(0.0, seed, Reply::Answered);
            let mut at = Duration::ZERO;
            while at < Duration::from_secs(30) {
                let mut pause = || Duration::from_millis(500).mul_f64(-network.random.f64().max(1e-9).ln());
                let (burst, calm) = (pause(), pause());
                network.outages.push((at, at + burst));
                at += burst + calm;
            }
            let (verdict, _) = one(&mut network);
            assert!(!matches!(verdict, Verdict::Closed(_)), "seed {seed}: {verdict:?}");
        }
    }

    #[test]
    fn a_silent_port_is_proven_closed_as_long_as_the_loss_allows_it() {
        for (loss, most, slowest) in [(0.0, 12, 4), (0.01, 16, 6), (0.05, 24, 9)] {
            for seed in 0..200 {
                let (verdict, time) = one(&mut Network::rough(loss, seed, Reply::Silent));
                let Verdict::Closed(Evidence::Silence { attempts, .. }) = verdict else {
                    panic!("{loss}: {verdict:?}")
                };
                assert!(attempts <= most && time < Duration::from_secs(slowest), "{loss}: {attempts} in {time:?}");
            }
        }
        for seed in 0..200 {
            let (verdict, time) = one(&mut Network::rough(0.30, seed, Reply::Silent));
            let fine = matches!(verdict, Verdict::Closed(_) | Verdict::Unproven(Unproven::Lossy { .. }));
            assert!(fine && time < Duration::from_secs(25), "{verdict:?} {time:?}");
        }
    }

    #[test]
    fn an_outage_delays_a_proof_and_does_not_spoil_it() {
        for seed in 0..200 {
            let mut network = Network::rough(0.01, seed, Reply::Silent);
            let from = Duration::from_millis(network.random.u64(0..3_000));
            network.outages = vec![(from, from + Duration::from_millis(1_500))];
            let (verdict, time) = one(&mut network);
            assert!(matches!(verdict, Verdict::Closed(_)), "{verdict:?} {time:?}");
        }
    }
}
