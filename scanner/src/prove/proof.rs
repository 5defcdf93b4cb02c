//! The proof for one port: what was asked, and what that is worth.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use deadlight_shared::{Port, Protocol};

use super::control::Control;
use super::verdict::{Evidence, Unproven, Verdict};
use crate::probe::{MISS, Outcome};

/// Silent attempts, and attempts at the control port, that always have to be made.
const FEWEST: u32 = 3;
/// Time from the first to the last silent attempt, at least.
const SPAN: Duration = Duration::from_secs(2);
/// Chance of missing an open port at each look at the evidence. A proof is looked at after every reply
/// and ends at the first look that suffices, which makes all looks together worth less than two.
const MISS_PER_LOOK: f64 = MISS / 2.0;

/// What came back on one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A handshake or a datagram.
    Answered,
    /// RST, or ICMP port unreachable.
    Refused,
    /// Nothing from the port itself.
    Silent,
    /// The attempt could not be made; the reason.
    NotAsked(String),
}

/// The attempts at one port.
#[derive(Debug, Clone)]
pub(super) struct Proof {
    pub(super) port: Port,
    attempts: Vec<Attempt>,
}

#[derive(Debug, Clone)]
struct Attempt {
    sent: Instant,
    source_port: Option<u16>,
    /// `None` while it is awaited.
    reply: Option<Reply>,
}

/// When the first and the last of some attempts left.
type Span = (Instant, Instant);

impl Proof {
    pub(super) fn new(port: Port) -> Self {
        Self { port, attempts: Vec::new() }
    }

    pub(super) fn sent(&mut self, now: Instant) {
        self.attempts.push(Attempt { sent: now, source_port: None, reply: None });
    }

    /// Settles the attempt that left at `sent`.
    pub(super) fn record(&mut self, sent: Instant, source_port: Option<u16>, reply: Reply) {
        if let Some(attempt) = self.attempts.iter_mut().rfind(|attempt| attempt.sent == sent) {
            (attempt.source_port, attempt.reply) = (source_port, Some(reply));
        }
    }

    /// The verdict, once there is one. One answer settles it. Everything else waits until neither an
    /// attempt nor the control port beside it is awaited: a late answer is an answer as well.
    pub(super) fn verdict(&self, control: Option<&Control>) -> Option<Verdict> {
        if self.with(&Reply::Answered).next().is_some() {
            return Some(Verdict::StillOpen);
        }
        let (first, last) = span(&self.attempts)?;
        let settled = self.awaited().next().is_none() && control.is_none_or(|control| control.is_settled(first, last));
        settled.then(|| self.conclusion(control)).flatten()
    }

    /// Whether another attempt is of use: not where those that are awaited will do.
    pub(super) fn wants_attempt(&self, control: Option<&Control>) -> bool {
        self.conclusion(control).is_none()
    }

    /// What follows when everything that is awaited stays silent.
    fn conclusion(&self, control: Option<&Control>) -> Option<Verdict> {
        let span = span(&self.attempts)?;
        self.blind(control, span)
            .or_else(|| self.refusals(control, span))
            .or_else(|| self.silence(control))
            .or_else(|| (self.attempts.len() >= self.most()).then(|| self.given_up(control, span)))
    }

    fn blind(&self, control: Option<&Control>, (first, last): Span) -> Option<Verdict> {
        let control = control?;
        let loss = control.loss(first, last);
        let blind = last - first >= SPAN && loss.asked >= FEWEST && loss.lost == loss.asked;
        blind.then_some(Verdict::Unproven(Unproven::Blind { control: control.port, asked: loss.asked }))
    }

    /// Two refusals from different source ports are a proof, unless the control port is silent or
    /// refused as well: then somebody keeps us out.
    fn refusals(&self, control: Option<&Control>, (first, last): Span) -> Option<Verdict> {
        let heard = control.map(|control| control.loss(first, last)).is_none_or(|loss| loss.lost < loss.asked);
        let source_ports = source_ports(self.with(&Reply::Refused));
        let (protocol, attempts) = (self.port.protocol, self.count(&Reply::Refused));
        let refused = Verdict::Closed(Evidence::Refusals { protocol, attempts, source_ports });
        (heard && source_ports >= 2).then_some(refused)
    }

    /// Silence is a proof when it lasted, came to more than one source port, and to so many attempts
    /// that an open port would hardly be missed at whatever loss the control port's answers allow. A
    /// silent attempt counts when the control port answered right before and right after it.
    fn silence(&self, control: Option<&Control>) -> Option<Verdict> {
        if self.port.protocol == Protocol::Udp {
            return None;
        }
        let Some(control) = control else {
            return (self.count(&Reply::Silent) >= FEWEST).then_some(Verdict::Unproven(Unproven::NoControlPort));
        };
        let silent = self.with(&Reply::Silent).filter(|attempt| control.answered_around(attempt.sent));
        let counted: Vec<_> = silent.chain(self.awaited()).collect();
        let (first, last) = span(counted.iter().copied())?;
        let (attempts, source_ports) = (number(counted.len()), source_ports(counted.iter().copied()));
        let (over, loss) = (last - first, control.loss(first, last));
        let proven = over >= SPAN
            && attempts >= FEWEST
            && source_ports >= 2
            && loss.asked >= FEWEST
            && loss.miss_chance(attempts) < MISS_PER_LOOK;
        let evidence = Evidence::Silence { attempts, source_ports, over, control: control.port, loss };
        proven.then_some(Verdict::Closed(evidence))
    }

    fn given_up(&self, control: Option<&Control>, (first, last): Span) -> Verdict {
        let reason = self.attempts.iter().find_map(|attempt| match &attempt.reply {
            Some(Reply::NotAsked(reason)) => Some(reason.clone()),
            _ => None,
        });
        let (refused, silent) = (self.count(&Reply::Refused), self.count(&Reply::Silent));
        Verdict::Unproven(match (reason, self.port.protocol, control) {
            (Some(reason), ..) => Unproven::NotAsked(reason),
            (None, ..) if refused > 0 => Unproven::Mixed { refused, silent },
            (None, Protocol::Tcp, Some(control)) => {
                Unproven::Lossy { control: control.port, loss: control.loss(first, last) }
            }
            (None, Protocol::Tcp, None) => Unproven::NoControlPort,
            (None, Protocol::Udp, _) => Unproven::SilentUdp { attempts: silent },
        })
    }

    /// Attempts after which no proof is to be had.
    fn most(&self) -> usize {
        match self.port.protocol {
            Protocol::Tcp => 60,
            Protocol::Udp => 20,
        }
    }

    fn awaited(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.reply.is_none())
    }

    fn with<'a>(&'a self, reply: &'a Reply) -> impl Iterator<Item = &'a Attempt> {
        self.attempts.iter().filter(move |attempt| attempt.reply.as_ref() == Some(reply))
    }

    fn count(&self, reply: &Reply) -> u32 {
        number(self.with(reply).count())
    }
}

fn span<'a>(attempts: impl IntoIterator<Item = &'a Attempt>) -> Option<Span> {
    attempts.into_iter().fold(None, |span, &Attempt { sent, .. }| match span {
        None => Some((sent, sent)),
        Some((first, last)) => Some((sent.min(first), sent.max(last))),
    })
}

fn source_ports<'a>(attempts: impl Iterator<Item = &'a Attempt>) -> usize {
    attempts.filter_map(|attempt| attempt.source_port).collect::<BTreeSet<_>>().len()
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl From<Outcome> for Reply {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Answered { .. } => Self::Answered,
            Outcome::Refused => Self::Refused,
            // A router's word about the way is no answer of the port.
            Outcome::Silent | Outcome::Unreachable => Self::Silent,
            Outcome::Short(reason) | Outcome::NotAsked(reason) => Self::NotAsked(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Loss;

    const SILENT: Reply = Reply::Silent;
    const REFUSED: Reply = Reply::Refused;

    /// A proof after `replies`, one each 400 ms, from source ports 1, 2, 1, 2 and so on.
    fn after(start: Instant, port: &str, replies: &[Reply]) -> Proof {
        let mut proof = Proof::new(port.parse().unwrap());
        for (index, reply) in (0_u16..).zip(replies) {
            let sent = start + Duration::from_millis(400) * index.into();
            proof.sent(sent);
            proof.record(sent, Some(1 + index % 2), reply.clone());
        }
        proof
    }

    /// A control port asked each 100 ms for a minute; `answers` says which probes were answered.
    fn control(start: Instant, answers: impl Fn(u32) -> bool) -> Control {
        let mut control = Control::new("7443/tcp".parse().unwrap());
        for index in 0..600 {
            let sent = start + Duration::from_millis(100) * index;
            control.sent(sent);
            control.record(sent, Some(answers(index)));
        }
        control
    }

    /// The verdict on `port` after `replies`, beside a control port with such `answers`.
    fn verdict(port: &str, replies: &[Reply], answers: impl Fn(u32) -> bool) -> Option<Verdict> {
        let start = Instant::now();
        after(start, port, replies).verdict(Some(&control(start, answers)))
    }

    fn alone(port: &str, replies: &[Reply]) -> Option<Verdict> {
        after(Instant::now(), port, replies).verdict(None)
    }

    fn is_closed(verdict: Option<Verdict>) -> bool {
        matches!(verdict, Some(Verdict::Closed(_)))
    }

    fn is_blind(verdict: Option<Verdict>) -> bool {
        matches!(verdict, Some(Verdict::Unproven(Unproven::Blind { .. })))
    }

    #[test]
    fn silence_beside_a_healthy_control_port_is_a_proof() {
        assert_eq!(verdict("80/tcp", &vec![SILENT; 6], |_| true), None, "21 answers are too few for six");
        let verdict = verdict("80/tcp", &vec![SILENT; 7], |_| true).unwrap();
        let Verdict::Closed(evidence) = verdict else { panic!("{verdict:?}") };
        assert_eq!(
            evidence.to_string(),
            "7 silent attempts from 2 source ports over 2.4 s; meanwhile control port 7443/tcp answered 25 of 25; \
             an open port is missed like this less than once in a million"
        );
    }

    #[test]
    fn haste_or_a_single_source_port_is_not_enough() {
        let start = Instant::now();
        let control = control(start, |_| true);
        for (sources, gap, proven) in [(2, 100, true), (2, 99, false), (1, 100, false)] {
            let mut proof = Proof::new("80/tcp".parse().unwrap());
            for index in 0..21_u16 {
                let sent = start + Duration::from_millis(gap) * index.into();
                proof.sent(sent);
                proof.record(sent, Some(index % sources), SILENT);
            }
            assert_eq!(is_closed(proof.verdict(Some(&control))), proven, "{sources} {gap}");
        }
    }

    #[test]
    fn loss_asks_for_more() {
        let needed =
            |answers: fn(u32) -> bool| (1..60).find(|&most| is_closed(verdict("80/tcp", &vec![SILENT; most], answers)));
        assert_eq!(needed(|_| true), Some(7));
        let (tenth, half) = (needed(|index| index % 10 != 5).unwrap(), needed(|index| index % 2 == 0).unwrap());
        assert!(7 < tenth && tenth < half, "{tenth} {half}");
        assert_eq!(needed(|index| index % 4 == 0), None);
        let lossy = verdict("80/tcp", &vec![SILENT; 60], |index| index % 4 == 0);
        assert!(matches!(lossy, Some(Verdict::Unproven(Unproven::Lossy { .. }))), "{lossy:?}");
    }

    #[test]
    fn silence_counts_only_where_the_control_port_answered_before_and_after() {
        let outage = |index: u32| !(4..=12).contains(&index);
        let closed = verdict("80/tcp", &vec![SILENT; 40], outage);
        let Some(Verdict::Closed(Evidence::Silence { attempts, .. })) = closed else { panic!("{closed:?}") };
        assert_eq!(attempts, 37);
    }

    #[test]
    fn what_is_awaited_can_still_be_an_answer() {
        let start = Instant::now();
        let healthy = control(start, |_| true);
        let mut proof = after(start, "80/tcp", &vec![SILENT; 9]);
        assert!(is_closed(proof.verdict(Some(&healthy))));
        let late = start + Duration::from_millis(3_600);
        proof.sent(late);
        assert_eq!(proof.verdict(Some(&healthy)), None);
        assert!(!proof.wants_attempt(Some(&healthy)), "nine are enough already");
        proof.record(late, Some(3), Reply::Answered);
        assert_eq!(proof.verdict(Some(&healthy)), Some(Verdict::StillOpen));

        let mut unsettled = control(start, |_| true);
        unsettled.sent(start + Duration::from_mins(1));
        let mut proof = after(start, "80/tcp", &vec![SILENT; 20]);
        assert!(is_closed(proof.verdict(Some(&unsettled))), "that probe left later");
        let last = start + Duration::from_millis(60_100);
        proof.sent(last);
        proof.record(last, Some(3), SILENT);
        assert_eq!(proof.verdict(Some(&unsettled)), None, "the control port is awaited");
    }

    #[test]
    fn a_dead_control_port_proves_nothing() {
        assert_eq!(verdict("80/tcp", &vec![SILENT; 5], |_| false), None, "too early to say");
        assert!(is_blind(verdict("80/tcp", &vec![SILENT; 6], |_| false)));
        let unasked = Control::new("7443/tcp".parse().unwrap());
        assert_eq!(after(Instant::now(), "80/tcp", &vec![SILENT; 9]).verdict(Some(&unasked)), None);
        assert_eq!(alone("80/tcp", &vec![SILENT; 3]), Some(Verdict::Unproven(Unproven::NoControlPort)));
    }

    #[test]
    fn one_answer_beats_everything_however_late() {
        for replies in
            [vec![Reply::Answered], vec![SILENT, SILENT, Reply::Answered], vec![REFUSED, REFUSED, Reply::Answered]]
        {
            assert_eq!(verdict("80/tcp", &replies, |_| true), Some(Verdict::StillOpen));
        }
    }

    #[test]
    fn refusals_must_come_to_two_source_ports() {
        assert_eq!(verdict("80/tcp", &[REFUSED], |_| true), None);
        for port in ["80/tcp", "53/udp"] {
            assert!(is_closed(alone(port, &[REFUSED, REFUSED])));
        }
        assert!(is_closed(alone("53/udp", &[SILENT, REFUSED, SILENT, SILENT, REFUSED, REFUSED])));
        let one_source = [REFUSED, SILENT, REFUSED, SILENT, REFUSED];
        assert_eq!(alone("53/udp", &one_source), None, "a refusal to one source port only can be forged");
        let replies: Vec<_> = [REFUSED, SILENT].into_iter().cycle().take(20).collect();
        let given_up = alone("53/udp", &replies);
        assert_eq!(given_up, Some(Verdict::Unproven(Unproven::Mixed { refused: 10, silent: 10 })));
    }

    #[test]
    fn refusals_prove_nothing_while_the_control_port_is_kept_from_us_too() {
        for port in ["80/tcp", "53/udp"] {
            assert_eq!(verdict(port, &[REFUSED, REFUSED], |_| false), None, "{port}");
            assert!(is_blind(verdict(port, &vec![REFUSED; 6], |_| false)), "{port}");
            assert!(is_closed(verdict(port, &[REFUSED, REFUSED], |index| index == 1)), "{port}");
        }
    }

    #[test]
    fn udp_silence_proves_nothing() {
        assert_eq!(verdict("53/udp", &vec![SILENT; 19], |_| true), None);
        let given_up = Some(Verdict::Unproven(Unproven::SilentUdp { attempts: 20 }));
        assert_eq!(verdict("53/udp", &vec![SILENT; 20], |_| true), given_up);
    }

    #[test]
    fn what_was_not_asked_does_not_count() {
        let broken = Reply::NotAsked("network is unreachable".into());
        let mut replies = vec![SILENT; 6];
        replies.push(broken.clone());
        assert_eq!(verdict("80/tcp", &replies, |_| true), None);
        let given_up = Some(Verdict::Unproven(Unproven::NotAsked("network is unreachable".into())));
        assert_eq!(verdict("80/tcp", &vec![broken; 60], |_| true), given_up);
    }

    /// The chance that a proof calls an open port closed at the loss `q`, when it is looked at after
    /// every reply: over all courses, the control port being asked three times for each attempt.
    fn chance_of_a_false_proof(q: f64) -> f64 {
        let (mut courses, mut chance) = (vec![1.0], 0.0);
        for silent in 1..=60 {
            for _ in 0..3 {
                let answered = courses.iter().map(|course| course * (1.0 - q)).chain([0.0]);
                let lost = std::iter::once(0.0).chain(courses.iter().map(|course| course * q));
                courses = answered.zip(lost).map(|(answered, lost)| answered + lost).collect();
                chance += ended(&mut courses, silent - 1);
            }
            courses.iter_mut().for_each(|course| *course *= q);
            chance += ended(&mut courses, silent);
        }
        chance
    }

    /// Takes out the courses that end in a proof. The index of a course is what it lost.
    fn ended(courses: &mut [f64], silent: u32) -> f64 {
        let asked = number(courses.len() - 1);
        let proven = |lost| silent >= FEWEST && Loss { asked, lost }.miss_chance(silent) < MISS_PER_LOOK;
        // Where this many losses are too many, more of them are.
        let ended = (0..).zip(courses.iter_mut()).take_while(|(lost, _)| proven(*lost));
        ended.map(|(_, course)| std::mem::take(course)).sum()
    }

    #[test]
    fn an_open_port_is_missed_less_than_once_in_a_million_whatever_the_loss() {
        for q in (1..50).map(|step| f64::from(step) / 50.0) {
            let chance = chance_of_a_false_proof(q);
            assert!(chance < MISS, "loss {q}: {chance:e}");
        }
    }
}
