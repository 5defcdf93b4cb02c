//! The proof for one port: what was asked, and what that is worth.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use deadlight_shared::{Port, Protocol};

use crate::probe::Outcome;

/// Silent attempts that always have to be made.
const FEWEST: u32 = 3;
/// Time from the first to the last of them.
const SPAN: Duration = Duration::from_secs(2);
/// Attempts after which no proof is to be had.
const MOST: u32 = 20;
/// Chance of having missed an open port that a proof may carry.
const MISS: f64 = 1e-6;

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

/// How often the node's control port answered in the same window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Attempts that are settled.
    pub asked: u32,
    /// Those that were answered.
    pub answered: u32,
}

/// Where a port stands after its proof was attempted.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// No way in.
    Closed(Evidence),
    /// It still answers.
    StillOpen,
    /// Neither could be shown.
    Unproven(Unproven),
}

/// What a proof rests on.
#[derive(Debug, Clone, PartialEq)]
pub enum Evidence {
    /// Nothing came back, while the control port answered.
    Silence {
        /// Silent attempts.
        attempts: u32,
        /// Different source ports they left from.
        source_ports: usize,
        /// From the first to the last.
        over: Duration,
        /// The control port.
        control: Port,
        /// How often it answered.
        rate: Rate,
    },
    /// The port refused.
    Refusals {
        /// Protocol of the port.
        protocol: Protocol,
        /// Refused attempts.
        attempts: u32,
        /// Different source ports they left from.
        source_ports: usize,
    },
}

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unproven {
    /// TCP silence, and no port is known that must answer.
    NoControlPort,
    /// The control port was silent as well: the vantage point is blind.
    Blind {
        /// The control port.
        control: Port,
        /// How often it was asked.
        asked: u32,
    },
    /// The control port answers too seldom for silence to mean anything.
    Lossy {
        /// The control port.
        control: Port,
        /// How often it answered.
        rate: Rate,
    },
    /// UDP silence.
    SilentUdp {
        /// Attempts made.
        attempts: u32,
    },
    /// The port answered now this way, now that.
    Mixed {
        /// Refused attempts.
        refused: u32,
        /// Silent attempts.
        silent: u32,
    },
    /// This host could not ask.
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
    source_port: Option<u16>,
    sent: Instant,
    reply: Reply,
}

impl Proof {
    pub(super) fn new(port: Port) -> Self {
        Self { port, attempts: Vec::new() }
    }

    pub(super) fn record(&mut self, source_port: Option<u16>, sent: Instant, reply: Reply) {
        self.attempts.push(Attempt { source_port, sent, reply });
    }

    /// The verdict, once there is one. One answer settles it; two refusals from different source
    /// ports do, unless the control port is refused or silent as well: then somebody keeps us out.
    /// For silence, see [`Self::silence`].
    pub(super) fn verdict(&self, control: Option<(Port, Rate)>) -> Option<Verdict> {
        if self.with(&Reply::Answered).next().is_some() {
            return Some(Verdict::StillOpen);
        }
        let protocol = self.port.protocol;
        let refused = self.count(&Reply::Refused);
        let source_ports = self.source_ports(&Reply::Refused);
        if source_ports >= 2 {
            if let Some((control, rate)) = control.filter(|(_, rate)| rate.answered == 0) {
                let blind = Verdict::Unproven(Unproven::Blind { control, asked: rate.asked });
                return (rate.asked >= FEWEST).then_some(blind);
            }
            return Some(Verdict::Closed(Evidence::Refusals { protocol, attempts: refused, source_ports }));
        }
        let silent = self.count(&Reply::Silent);
        let verdict = match (protocol, control) {
            (Protocol::Udp, _) => None,
            (Protocol::Tcp, None) if silent >= FEWEST => Some(Verdict::Unproven(Unproven::NoControlPort)),
            (Protocol::Tcp, None) => None,
            (Protocol::Tcp, Some((port, rate))) => self.silence(port, rate),
        };
        verdict.or_else(|| (self.attempts.len() >= MOST as usize).then(|| self.given_up(control, refused, silent)))
    }

    /// Silence is a proof when it lasted, came to enough attempts for the loss measured on the
    /// control port, and to more than one source port.
    fn silence(&self, control: Port, rate: Rate) -> Option<Verdict> {
        let attempts = self.count(&Reply::Silent);
        let source_ports = self.source_ports(&Reply::Silent);
        let over = self.span();
        if over < SPAN || attempts < FEWEST || rate.asked < FEWEST || source_ports < 2 {
            return None;
        }
        match attempts_for(rate) {
            None => Some(Verdict::Unproven(Unproven::Blind { control, asked: rate.asked })),
            Some(needed) if needed > MOST => Some(Verdict::Unproven(Unproven::Lossy { control, rate })),
            Some(needed) if attempts < needed => None,
            Some(_) => Some(Verdict::Closed(Evidence::Silence { attempts, source_ports, over, control, rate })),
        }
    }

    fn given_up(&self, control: Option<(Port, Rate)>, refused: u32, silent: u32) -> Verdict {
        let reason = self.attempts.iter().find_map(|attempt| match &attempt.reply {
            Reply::NotAsked(reason) => Some(reason.clone()),
            _ => None,
        });
        Verdict::Unproven(match (reason, self.port.protocol, control) {
            (Some(reason), ..) => Unproven::NotAsked(reason),
            (None, ..) if refused > 0 => Unproven::Mixed { refused, silent },
            (None, Protocol::Tcp, Some((control, rate))) => Unproven::Lossy { control, rate },
            (None, Protocol::Tcp, None) => Unproven::NoControlPort,
            (None, Protocol::Udp, _) => Unproven::SilentUdp { attempts: silent },
        })
    }

    fn with<'a>(&'a self, reply: &'a Reply) -> impl Iterator<Item = &'a Attempt> {
        self.attempts.iter().filter(move |attempt| attempt.reply == *reply)
    }

    fn count(&self, reply: &Reply) -> u32 {
        u32::try_from(self.with(reply).count()).unwrap_or(u32::MAX)
    }

    fn source_ports(&self, reply: &Reply) -> usize {
        self.with(reply).filter_map(|attempt| attempt.source_port).collect::<BTreeSet<_>>().len()
    }

    /// From the first to the last silent attempt.
    fn span(&self) -> Duration {
        let sent = || self.with(&Reply::Silent).map(|attempt| attempt.sent);
        sent().min().zip(sent().max()).map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

/// Silent attempts needed so that an open port is missed with a chance below 1e-6 when each
/// attempt is answered with the chance that `rate` shows; `None` when nothing was answered.
fn attempts_for(rate: Rate) -> Option<u32> {
    let answered = f64::from(rate.answered) / f64::from(rate.asked.max(1));
    let needed = (MISS.ln() / (1.0 - answered).ln()).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded just before")]
    (rate.answered > 0).then(|| needed.clamp(f64::from(FEWEST), 1_000.0) as u32)
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

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silence { attempts, source_ports, over, control, rate } => write!(
                f,
                "{attempts} attempts from {source_ports} source ports over {:.1} s, all silent; \
                 meanwhile control port {control} answered {} of {}",
                over.as_secs_f64(),
                rate.answered,
                rate.asked
            ),
            Self::Refusals { protocol, attempts, source_ports } => {
                let word = match protocol {
                    Protocol::Tcp => "RST",
                    Protocol::Udp => "ICMP port unreachable",
                };
                write!(f, "{attempts} attempts from {source_ports} source ports, each refused with {word}")
            }
        }
    }
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoControlPort => f.write_str("silence proves nothing without a control port on this node"),
            Self::Blind { control, asked } => {
                write!(f, "control port {control} did not answer either, 0 of {asked}: this vantage point is blind")
            }
            Self::Lossy { control, rate } => {
                let Rate { asked, answered } = rate;
                write!(f, "control port {control} answered only {answered} of {asked}: silence proves nothing")
            }
            Self::SilentUdp { attempts } => {
                write!(f, "{attempts} attempts, all silent: for UDP silence proves nothing, a refusal would")
            }
            Self::Mixed { refused, silent } => {
                write!(f, "{refused} attempts refused and {silent} silent: neither is enough")
            }
            Self::NotAsked(reason) => write!(f, "could not ask: {}", deadlight_shared::text::printable(reason, 200)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP or UDP proof after `replies`, one a second, from source ports 1, 2, 1, 2 and so on.
    fn after(port: &str, replies: &[Reply]) -> Proof {
        let start = Instant::now();
        let mut proof = Proof::new(port.parse().unwrap());
        for (index, reply) in (0_u16..).zip(replies) {
            proof.record(Some(1 + index % 2), start + Duration::from_secs(index.into()), reply.clone());
        }
        proof
    }

    fn control(answered: u32, asked: u32) -> Option<(Port, Rate)> {
        Some(("7443/tcp".parse().unwrap(), Rate { asked, answered }))
    }

    const SILENT: Reply = Reply::Silent;
    const REFUSED: Reply = Reply::Refused;

    fn is_closed(verdict: Option<Verdict>) -> bool {
        matches!(verdict, Some(Verdict::Closed(_)))
    }

    #[test]
    fn the_number_of_attempts_follows_the_loss() {
        let needed = |answered, asked| attempts_for(Rate { asked, answered });
        for (answered, asked, wanted) in [
            (10, 10, Some(3)),
            (99, 100, Some(3)),
            (98, 100, Some(4)),
            (9, 10, Some(6)),
            (5, 10, Some(20)),
            (0, 10, None),
        ] {
            assert_eq!(needed(answered, asked), wanted, "{answered} of {asked}");
        }
        assert!(needed(1, 10).unwrap() > MOST);
    }

    #[test]
    fn three_silent_attempts_over_two_seconds_beside_a_healthy_control_port_are_a_proof() {
        assert_eq!(after("80/tcp", &[SILENT, SILENT]).verdict(control(9, 9)), None);
        let verdict = after("80/tcp", &[SILENT, SILENT, SILENT]).verdict(control(9, 9)).unwrap();
        let Verdict::Closed(evidence) = verdict else { panic!("{verdict:?}") };
        assert_eq!(
            evidence.to_string(),
            "3 attempts from 2 source ports over 2.0 s, all silent; meanwhile control port 7443/tcp answered 9 of 9"
        );
    }

    #[test]
    fn haste_or_a_single_source_port_is_not_enough() {
        let start = Instant::now();
        for (source_ports, gap) in [([1, 2, 3], 900), ([1, 1, 1], 1_000)] {
            let mut proof = Proof::new("80/tcp".parse().unwrap());
            for (source, index) in source_ports.into_iter().zip(0..) {
                proof.record(Some(source), start + Duration::from_millis(gap) * index, SILENT);
            }
            assert_eq!(proof.verdict(control(9, 9)), None, "{source_ports:?} {gap}");
        }
    }

    #[test]
    fn loss_asks_for_more() {
        let lossy = control(18, 20);
        assert_eq!(after("80/tcp", &vec![SILENT; 5]).verdict(lossy), None);
        assert!(is_closed(after("80/tcp", &vec![SILENT; 6]).verdict(lossy)));
        let verdict = after("80/tcp", &vec![SILENT; 3]).verdict(control(1, 10));
        assert!(matches!(verdict, Some(Verdict::Unproven(Unproven::Lossy { .. }))));
    }

    #[test]
    fn a_dead_control_port_proves_nothing() {
        let silent = after("80/tcp", &vec![SILENT; 3]);
        assert!(matches!(silent.verdict(control(0, 9)), Some(Verdict::Unproven(Unproven::Blind { .. }))));
        assert_eq!(silent.verdict(control(0, 0)), None, "it was not asked yet");
        assert_eq!(silent.verdict(None), Some(Verdict::Unproven(Unproven::NoControlPort)));
    }

    #[test]
    fn one_answer_beats_everything_however_late() {
        for replies in
            [vec![Reply::Answered], vec![SILENT, SILENT, Reply::Answered], vec![REFUSED, REFUSED, Reply::Answered]]
        {
            assert_eq!(after("80/tcp", &replies).verdict(control(9, 9)), Some(Verdict::StillOpen));
        }
    }

    #[test]
    fn refusals_must_come_to_two_source_ports() {
        assert_eq!(after("80/tcp", &[REFUSED]).verdict(control(9, 9)), None);
        assert!(is_closed(after("80/tcp", &[REFUSED, REFUSED]).verdict(None)));
        assert!(is_closed(after("53/udp", &[REFUSED, REFUSED]).verdict(None)));
        assert!(is_closed(after("53/udp", &[SILENT, REFUSED, SILENT, SILENT, REFUSED, REFUSED]).verdict(None)));
        let one_source = after("80/tcp", &[REFUSED, SILENT, REFUSED, SILENT, REFUSED]);
        assert_eq!(one_source.verdict(None), None, "a RST to one source port only can be forged");
        let replies: Vec<_> = [REFUSED, SILENT].into_iter().cycle().take(MOST as usize).collect();
        let given_up = after("53/udp", &replies).verdict(None);
        assert_eq!(given_up, Some(Verdict::Unproven(Unproven::Mixed { refused: 10, silent: 10 })));
    }

    #[test]
    fn udp_silence_proves_nothing() {
        assert_eq!(after("53/udp", &vec![SILENT; 10]).verdict(control(9, 9)), None);
        let verdict = after("53/udp", &vec![SILENT; MOST as usize]).verdict(control(9, 9));
        assert_eq!(verdict, Some(Verdict::Unproven(Unproven::SilentUdp { attempts: MOST })));
    }

    #[test]
    fn refusals_prove_nothing_while_the_control_port_is_kept_from_us_too() {
        for port in ["80/tcp", "53/udp"] {
            let refused = after(port, &[REFUSED, REFUSED]);
            assert_eq!(refused.verdict(control(0, 1)), None, "{port}");
            assert!(
                matches!(refused.verdict(control(0, 9)), Some(Verdict::Unproven(Unproven::Blind { .. }))),
                "{port}"
            );
            assert!(is_closed(refused.verdict(control(1, 9))), "{port}");
        }
    }

    #[test]
    fn what_was_not_asked_does_not_count() {
        let broken = Reply::NotAsked("network is unreachable".into());
        assert_eq!(after("80/tcp", &[SILENT, broken.clone(), SILENT]).verdict(control(9, 9)), None);
        let verdict = after("80/tcp", &vec![broken; MOST as usize]).verdict(control(0, 9)).unwrap();
        assert_eq!(verdict, Verdict::Unproven(Unproven::NotAsked("network is unreachable".into())));
    }
}
