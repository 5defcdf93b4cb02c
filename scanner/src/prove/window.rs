//! One address during its rescan: proofs for several ports beside one control port.

use std::time::{Duration, Instant};

use deadlight_shared::{Port, Protocol};

use super::control::Control;
use super::proof::{Proof, Reply};
use super::verdict::Verdict;

/// From one attempt at the control port to the next, on average.
const BETWEEN_CONTROLS: Duration = Duration::from_millis(100);

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The control port.
    Control(Port),
    /// The port with this index.
    Proof(usize, Port),
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask, tell [`Window::sent`], and later [`Window::record`].
    Ask(Question),
    /// Nothing to ask before this instant, or before the next reply.
    Wait(Option<Instant>),
    /// Every port has its verdict.
    Done,
}

/// The state machine of one address. Several attempts at one port may be on their way at once.
///
/// Pauses between attempts vary at random. In a fixed rhythm, a limit on the way that lets the first few
/// SYNs of a burst pass could swallow each attempt at one port and none at the control port.
#[derive(Debug, Clone)]
pub struct Window {
    control: Option<(Control, Instant)>,
    proofs: Vec<Turn>,
    random: fastrand::Rng,
}

#[derive(Debug, Clone)]
struct Turn {
    proof: Proof,
    /// When the next attempt may leave.
    due: Instant,
    /// Whether one is of use.
    wanted: bool,
    verdict: Option<Verdict>,
}

impl Turn {
    fn judge(&mut self, control: Option<&Control>) {
        if self.verdict.is_none() {
            self.verdict = self.proof.verdict(control);
            self.wanted = self.proof.wants_attempt(control);
        }
    }
}

impl Window {
    /// Proofs for `ports` from `now` on, beside `control` if the node has one.
    pub fn new(
        ports: impl IntoIterator<Item = Port>,
        control: Option<Port>,
        now: Instant,
        mut random: fastrand::Rng,
    ) -> Self {
        let proofs = ports.into_iter().map(|port| Turn {
            proof: Proof::new(port),
            due: now + between_attempts(port).mul_f64(random.f64()),
            wanted: true,
            verdict: None,
        });
        Self { proofs: proofs.collect(), control: control.map(|port| (Control::new(port), now)), random }
    }

    /// What to do at `now`.
    pub fn next(&self, now: Instant) -> Step {
        let mut undecided = self.proofs.iter().enumerate().filter(|(_, turn)| turn.verdict.is_none()).peekable();
        if undecided.peek().is_none() {
            return Step::Done;
        }
        // The control port goes first, so that it answers beside each attempt even where all wait for the pace.
        let control = self.control.as_ref().map(|(control, due)| (*due, Question::Control(control.port)));
        if let Some((_, question)) = control.filter(|(due, _)| *due <= now) {
            return Step::Ask(question);
        }
        let wanted = undecided.filter(|(_, turn)| turn.wanted);
        let proofs = wanted.map(|(index, turn)| (turn.due, Question::Proof(index, turn.proof.port)));
        match control.into_iter().chain(proofs).min_by_key(|(due, _)| *due) {
            Some((due, question)) if due <= now => Step::Ask(question),
            first => Step::Wait(first.map(|(due, _)| due)),
        }
    }

    /// Notes that `question` left at `now`.
    pub fn sent(&mut self, question: Question, now: Instant) {
        let pause = 0.5 + self.random.f64();
        match (question, &mut self.control) {
            (Question::Proof(index, port), control) => {
                let turn = &mut self.proofs[index];
                turn.due = now + between_attempts(port).mul_f64(pause);
                turn.proof.sent(now);
                turn.judge(control.as_ref().map(|(control, _)| control));
            }
            (Question::Control(_), Some((control, due))) => {
                control.sent(now);
                *due = now + BETWEEN_CONTROLS.mul_f64(pause);
            }
            (Question::Control(_), None) => {}
        }
    }

    /// Takes the reply to `question`, which left at `sent` from `source_port`.
    pub fn record(&mut self, question: Question, sent: Instant, source_port: Option<u16>, reply: Reply) {
        match (question, &mut self.control) {
            (Question::Proof(index, _), control) => {
                let turn = &mut self.proofs[index];
                turn.proof.record(sent, source_port, reply);
                turn.judge(control.as_ref().map(|(control, _)| control));
            }
            (Question::Control(_), Some((control, _))) => {
                let left = !matches!(reply, Reply::NotAsked(_));
                control.record(sent, left.then_some(reply == Reply::Answered));
                self.proofs.iter_mut().for_each(|turn| turn.judge(Some(control)));
            }
            (Question::Control(_), None) => {}
        }
    }

    /// Each port with its verdict; only the decided ones.
    pub fn verdicts(&self) -> impl Iterator<Item = (Port, Verdict)> + '_ {
        self.proofs.iter().filter_map(|turn| Some((turn.proof.port, turn.verdict.clone()?)))
    }
}

/// From one attempt at a port to the next, on average. Hosts send few ICMP messages a second.
fn between_attempts(port: Port) -> Duration {
    match port.protocol {
        Protocol::Tcp => Duration::from_millis(300),
        Protocol::Udp => Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::simulation::{Network, play};
    use crate::prove::{Evidence, Unproven};

    #[test]
    fn a_closed_port_is_proven_in_three_seconds() {
        let (verdicts, time) = play(
            Instant::now(),
            &["8080/tcp", "9000/tcp"],
            Some("7443/tcp"),
            &mut Network::lossless(|_| Reply::Silent),
        );
        for verdict in verdicts {
            let Verdict::Closed(Evidence::Silence { attempts, source_ports, over, loss, .. }) = verdict else {
                panic!("{verdict:?}")
            };
            assert!(over >= Duration::from_secs(2), "{over:?}");
            assert!((6..=12).contains(&attempts) && source_ports == attempts as usize, "{attempts} {source_ports}");
            assert!(loss.asked >= 16 && loss.lost == 0, "{loss:?}");
        }
        assert!(time <= Duration::from_millis(3_500), "{time:?}");
    }

    #[test]
    fn a_blind_vantage_point_proves_nothing() {
        for port in ["8080/tcp", "53/udp"] {
            let mut outage =
                Network { outages: vec![(Duration::ZERO, Duration::MAX)], ..Network::lossless(|_| Reply::Answered) };
            let (verdicts, time) = play(Instant::now(), &[port], Some("7443/tcp"), &mut outage);
            assert!(matches!(verdicts[0], Verdict::Unproven(Unproven::Blind { .. })), "{verdicts:?}");
            assert!(time < Duration::from_secs(5), "{time:?}");
        }
    }

    #[test]
    fn an_open_port_is_seen_although_another_is_closed() {
        let open = "8080/tcp".parse::<Port>().unwrap();
        let mut network = Network::lossless(move |port| if port == open { Reply::Answered } else { Reply::Refused });
        let (verdicts, time) = play(Instant::now(), &["8080/tcp", "9000/tcp"], Some("7443/tcp"), &mut network);
        assert_eq!(verdicts[0], Verdict::StillOpen);
        assert!(matches!(verdicts[1], Verdict::Closed(Evidence::Refusals { .. })), "{verdicts:?}");
        assert!(time < Duration::from_secs(2), "{time:?}");
    }

    #[test]
    fn udp_needs_no_control_port() {
        let (verdicts, _) = play(Instant::now(), &["53/udp"], None, &mut Network::lossless(|_| Reply::Refused));
        assert!(matches!(verdicts[0], Verdict::Closed(Evidence::Refusals { .. })), "{verdicts:?}");
        let (verdicts, _) =
            play(Instant::now(), &["53/udp", "80/tcp"], None, &mut Network::lossless(|_| Reply::Silent));
        assert!(matches!(verdicts[0], Verdict::Unproven(Unproven::SilentUdp { .. })), "{verdicts:?}");
        assert_eq!(verdicts[1], Verdict::Unproven(Unproven::NoControlPort));
    }
}
