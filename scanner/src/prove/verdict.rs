//! How a proof ended, and in words.

use std::fmt;
use std::time::Duration;

use deadlight_shared::text::printable;
use deadlight_shared::{Name, Port, Protocol};

use crate::probe::Loss;

/// Longest text of others that is shown.
const SHOWN: usize = 300;

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
        /// Silent attempts beside which the control port answered.
        attempts: u32,
        /// Different source ports they left from.
        source_ports: usize,
        /// From the first to the last.
        over: Duration,
        /// The control port.
        control: Port,
        /// What it was asked meanwhile, and did not answer.
        loss: Loss,
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
    /// Another vantage point has shown it too.
    Seconded {
        /// What we have seen ourselves.
        ours: Box<Self>,
        /// The other vantage point.
        vantage: Name,
        /// What it has seen, in words; not escaped.
        theirs: String,
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
        /// What it was asked meanwhile, and did not answer.
        loss: Loss,
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
    /// It is closed, and a second vantage point that had to see that too did not; why, in words, not escaped.
    NotSeconded(String),
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silence { attempts, source_ports, over, control, loss } => write!(
                f,
                "{attempts} silent attempts from {source_ports} source ports over {:.1} s; meanwhile control port \
                 {control} answered {} of {}; an open port is missed like this less than once in a million",
                over.as_secs_f64(),
                loss.asked - loss.lost,
                loss.asked
            ),
            Self::Refusals { protocol, attempts, source_ports } => {
                let word = match protocol {
                    Protocol::Tcp => "RST",
                    Protocol::Udp => "ICMP port unreachable",
                };
                write!(f, "{attempts} attempts from {source_ports} source ports, each refused with {word}")
            }
            Self::Seconded { ours, vantage, theirs } => {
                write!(f, "{ours}; from {vantage} too: {}", printable(theirs, SHOWN))
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
            Self::Lossy { control, loss: Loss { asked, lost } } => {
                write!(f, "control port {control} answered only {} of {asked}: silence proves nothing", asked - lost)
            }
            Self::SilentUdp { attempts } => {
                write!(f, "{attempts} attempts, all silent: for UDP silence proves nothing, a refusal would")
            }
            Self::Mixed { refused, silent } => {
                write!(f, "{refused} attempts refused and {silent} silent: neither is enough")
            }
            Self::NotAsked(reason) => write!(f, "could not ask: {}", printable(reason, SHOWN)),
            Self::NotSeconded(why) => write!(
                f,
                "closed as seen from here, and not seen so from a second vantage point: {}",
                printable(why, SHOWN)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_there_is_no_proof_is_told_in_words() {
        let control: Port = "7443/tcp".parse().unwrap();
        for (unproven, wanted) in [
            (Unproven::NoControlPort, "silence proves nothing without a control port on this node"),
            (
                Unproven::Blind { control, asked: 9 },
                "control port 7443/tcp did not answer either, 0 of 9: this vantage point is blind",
            ),
            (
                Unproven::Lossy { control, loss: Loss { asked: 9, lost: 7 } },
                "control port 7443/tcp answered only 2 of 9: silence proves nothing",
            ),
            (
                Unproven::SilentUdp { attempts: 20 },
                "20 attempts, all silent: for UDP silence proves nothing, a refusal would",
            ),
            (Unproven::Mixed { refused: 1, silent: 2 }, "1 attempts refused and 2 silent: neither is enough"),
            (Unproven::NotAsked("no\nroute".to_owned()), "could not ask: no\\u{a}route"),
        ] {
            assert_eq!(unproven.to_string(), wanted);
        }
    }
}
