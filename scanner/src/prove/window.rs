//! One address during its rescan: proofs for several ports beside one control port.

use std::time::{Duration, Instant};

use deadlight_shared::Port;

use super::proof::{Proof, Rate, Reply, Verdict};

/// From one attempt at a port to the next.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
/// From one attempt at the control port to the next.
const BETWEEN_CONTROLS: Duration = Duration::from_millis(250);

/// The port that must answer, and how it did so far.
type Control = Option<(Port, Rate)>;

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

/// The state machine of one address.
#[derive(Debug, Clone)]
pub struct Window {
    control: Option<(Port, Rate, Turn)>,
    proofs: Vec<(Proof, Turn)>,
}

/// When one port was last asked, and whether its reply is still awaited.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    sent: Option<Instant>,
    awaited: bool,
}

impl Window {
    /// Proofs for `ports`, beside `control` if the node has one.
    pub fn new(ports: impl IntoIterator<Item = Port>, control: Option<Port>) -> Self {
        let proofs = ports.into_iter().map(|port| (Proof::new(port), Turn::default()));
        Self { control: control.map(|port| (port, Rate::default(), Turn::default())), proofs: proofs.collect() }
    }

    /// What to do at `now`.
    pub fn next(&self, now: Instant) -> Step {
        let mut open = self.undecided().peekable();
        if open.peek().is_none() {
            return Step::Done;
        }
        let control = self.control.iter().map(|(port, _, turn)| (Question::Control(*port), turn, BETWEEN_CONTROLS));
        let proofs = open.map(|(index, (proof, turn))| (Question::Proof(index, proof.port), turn, BETWEEN_ATTEMPTS));
        let mut earliest: Option<Instant> = None;
        for (question, turn, between) in control.chain(proofs).filter(|(_, turn, _)| !turn.awaited) {
            match turn.sent.map(|sent| sent + between) {
                Some(due) if due > now => earliest = Some(earliest.map_or(due, |other| other.min(due))),
                _ => return Step::Ask(question),
            }
        }
        Step::Wait(earliest)
    }

    /// Notes that `question` left at `now`.
    pub fn sent(&mut self, question: Question, now: Instant) {
        if let Some(turn) = self.turn(question) {
            *turn = Turn { sent: Some(now), awaited: true };
        }
    }

    /// Takes the reply to `question`, which left from `source_port`.
    pub fn record(&mut self, question: Question, source_port: Option<u16>, reply: Reply) {
        let Some(Turn { sent: Some(sent), awaited }) = self.turn(question) else { return };
        *awaited = false;
        let sent = *sent;
        match (question, &mut self.control) {
            (Question::Proof(index, _), _) => self.proofs[index].0.record(source_port, sent, reply),
            (Question::Control(_), Some((_, rate, _))) if !matches!(reply, Reply::NotAsked(_)) => {
                rate.asked += 1;
                rate.answered += u32::from(reply == Reply::Answered);
            }
            (Question::Control(_), _) => {}
        }
    }

    /// Each port with its verdict; only the decided ones.
    pub fn verdicts(&self) -> impl Iterator<Item = (Port, Verdict)> + '_ {
        self.proofs.iter().filter_map(|(proof, _)| Some((proof.port, proof.verdict(self.rate())?)))
    }

    fn undecided(&self) -> impl Iterator<Item = (usize, &(Proof, Turn))> {
        self.proofs.iter().enumerate().filter(|(_, (proof, _))| proof.verdict(self.rate()).is_none())
    }

    fn rate(&self) -> Control {
        self.control.map(|(port, rate, _)| (port, rate))
    }

    fn turn(&mut self, question: Question) -> Option<&mut Turn> {
        match question {
            Question::Proof(index, _) => self.proofs.get_mut(index).map(|(_, turn)| turn),
            Question::Control(_) => self.control.as_mut().map(|(_, _, turn)| turn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::{Evidence, Unproven};

    const STEP: Duration = Duration::from_millis(50);

    /// Plays a rescan in simulated time; each question is answered after `STEP` by `network`.
    fn play(ports: &[&str], control: Option<&str>, network: impl Fn(Port, u16) -> Reply) -> (Vec<Verdict>, Duration) {
        let ports: Vec<Port> = ports.iter().map(|port| port.parse().unwrap()).collect();
        let mut window = Window::new(ports, control.map(|port| port.parse().unwrap()));
        let start = Instant::now();
        let (mut now, mut source) = (start, 40_000);
        let mut awaited: Vec<(Question, u16)> = Vec::new();
        while now < start + Duration::from_secs(60) {
            match window.next(now) {
                Step::Done => return (window.verdicts().map(|(_, verdict)| verdict).collect(), now - start),
                Step::Ask(question) => {
                    source += 1;
                    window.sent(question, now);
                    awaited.push((question, source));
                }
                Step::Wait(_) => {
                    now += STEP;
                    for (question, source) in awaited.drain(..) {
                        let (Question::Control(port) | Question::Proof(_, port)) = question;
                        window.record(question, Some(source), network(port, source));
                    }
                }
            }
        }
        panic!("no end after a minute");
    }

    #[test]
    fn a_closed_port_is_proven_in_two_seconds() {
        let control = "7443/tcp".parse::<Port>().unwrap();
        let network = |port, _| if port == control { Reply::Answered } else { Reply::Silent };
        let (verdicts, time) = play(&["8080/tcp", "9000/tcp"], Some("7443/tcp"), network);
        for verdict in verdicts {
            let Verdict::Closed(Evidence::Silence { attempts, source_ports, rate, .. }) = verdict else {
                panic!("{verdict:?}")
            };
            assert_eq!((attempts, source_ports), (3, 3));
            assert!(rate.asked >= 7 && rate.answered == rate.asked, "{rate:?}");
        }
        assert!(time <= Duration::from_millis(2_100), "{time:?}");
    }

    #[test]
    fn a_loss_of_a_third_takes_more_attempts() {
        let control = "7443/tcp".parse::<Port>().unwrap();
        let network = |port, source| if port == control && source % 3 != 0 { Reply::Answered } else { Reply::Silent };
        let (verdicts, _) = play(&["8080/tcp"], Some("7443/tcp"), network);
        let Verdict::Closed(Evidence::Silence { attempts, .. }) = verdicts[0] else { panic!("{verdicts:?}") };
        assert!((10..=20).contains(&attempts), "{attempts}");
    }

    #[test]
    fn a_blind_vantage_point_proves_nothing() {
        let (verdicts, _) = play(&["8080/tcp"], Some("7443/tcp"), |_, _| Reply::Silent);
        assert!(matches!(verdicts[0], Verdict::Unproven(Unproven::Blind { .. })), "{verdicts:?}");
    }

    #[test]
    fn an_open_port_is_seen_although_another_is_closed() {
        let (open, closed) = ("8080/tcp".parse::<Port>().unwrap(), "9000/tcp".parse::<Port>().unwrap());
        let network = |port, _| match port {
            port if port == closed => Reply::Refused,
            _ => Reply::Answered,
        };
        let (verdicts, time) = play(&[&open.to_string(), &closed.to_string()], Some("7443/tcp"), network);
        assert_eq!(verdicts[0], Verdict::StillOpen);
        assert!(matches!(verdicts[1], Verdict::Closed(Evidence::Refusals { attempts: 2, .. })), "{verdicts:?}");
        assert!(time < Duration::from_secs(2), "{time:?}");
    }

    #[test]
    fn udp_needs_no_control_port() {
        let (verdicts, _) = play(&["53/udp"], None, |_, _| Reply::Refused);
        assert!(matches!(verdicts[0], Verdict::Closed(Evidence::Refusals { .. })), "{verdicts:?}");
        let (verdicts, _) = play(&["53/udp", "80/tcp"], None, |_, _| Reply::Silent);
        assert!(matches!(verdicts[0], Verdict::Unproven(Unproven::SilentUdp { .. })), "{verdicts:?}");
        assert_eq!(verdicts[1], Verdict::Unproven(Unproven::NoControlPort));
    }
}
