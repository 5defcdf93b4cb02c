//! The second look: every port that should be closed now is asked until that is proven.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use deadlight_shared::{Name, Port};
use tokio::task::JoinSet;

use crate::net;
use crate::probe::{Pacer, Payloads};
use crate::prove::{Question, Step, Verdict, Window};

/// How long one attempt waits: less than the kernel's pause before it repeats a SYN, so that one
/// attempt is one packet.
const ATTEMPT_LIMIT: Duration = Duration::from_millis(900);

/// One address to look at again.
#[derive(Debug, Clone)]
pub struct Rescan {
    /// Node of the address.
    pub node: Name,
    /// The address.
    pub address: IpAddr,
    /// Ports that should be closed.
    pub ports: Vec<Port>,
    /// The port of the node that must answer.
    pub control: Option<Port>,
}

/// What came of one port.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Node of the address.
    pub node: Name,
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Port,
    /// The verdict.
    pub verdict: Verdict,
}

/// How fast a rescan may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Probes a second in all.
    pub rate: NonZeroU32,
    /// Probes a second to each node.
    pub rate_per_node: NonZeroU32,
    /// Sockets at once.
    pub in_flight: usize,
}

/// Looks at all of `rescans` at once, within `limits`; datagrams say what `payloads` has.
pub async fn rescan(rescans: &[Rescan], limits: Limits, payloads: &Payloads) -> Vec<Checked> {
    let now = Instant::now();
    let window = |rescan: &Rescan| Window::new(rescan.ports.iter().copied(), rescan.control, now, fastrand::Rng::new());
    let mut windows: Vec<_> = rescans.iter().map(window).collect();
    let mut pace = Pace::new(rescans, limits);
    let mut asking: JoinSet<(usize, Attempt, net::Asked)> = JoinSet::new();
    while let Filled::Wait(due) = fill(&mut windows, rescans, &mut pace, &mut asking, payloads) {
        let joined = tokio::select! {
            joined = asking.join_next(), if !asking.is_empty() => joined,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => None,
        };
        if let Some(joined) = joined {
            let (index, attempt, asked) = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            windows[index].record(attempt.question, attempt.sent, asked.source_port, asked.outcome.into());
        }
    }
    let checked = |(rescan, window): (&Rescan, &Window)| {
        let (node, address) = (rescan.node.clone(), rescan.address);
        let checked = move |(port, verdict)| Checked { node: node.clone(), address, port, verdict };
        window.verdicts().map(checked).collect::<Vec<_>>()
    };
    rescans.iter().zip(&windows).flat_map(checked).collect()
}

/// A question on its way.
struct Attempt {
    question: Question,
    sent: Instant,
}

/// The pace in all and of each node.
struct Pace<'a> {
    all: Pacer,
    nodes: BTreeMap<&'a Name, Pacer>,
    in_flight: usize,
}

impl<'a> Pace<'a> {
    fn new(rescans: &'a [Rescan], limits: Limits) -> Self {
        let nodes = rescans.iter().map(|rescan| (&rescan.node, Pacer::new(limits.rate_per_node))).collect();
        Self { all: Pacer::new(limits.rate), nodes, in_flight: limits.in_flight }
    }

    /// Counts one probe to `node`, or says when it may leave.
    fn spend(&mut self, node: &'a Name, now: Instant) -> Result<(), Instant> {
        self.all.ready(now)?;
        if let Some(own) = self.nodes.get_mut(node) {
            own.ready(now)?;
            own.spend();
        }
        self.all.spend();
        Ok(())
    }
}

/// After everything that may start has been started.
enum Filled {
    /// Come back at this instant, or after the next outcome.
    Wait(Option<Instant>),
    /// Nothing is left.
    Done,
}

/// Starts what may start now.
fn fill<'a>(
    windows: &mut [Window],
    rescans: &'a [Rescan],
    pace: &mut Pace<'a>,
    asking: &mut JoinSet<(usize, Attempt, net::Asked)>,
    payloads: &Payloads,
) -> Filled {
    let (mut done, mut earliest) = (true, None::<Instant>);
    for (index, (window, rescan)) in windows.iter_mut().zip(rescans).enumerate() {
        loop {
            let now = Instant::now();
            let due = match window.next(now) {
                Step::Done => break,
                Step::Wait(due) => due,
                Step::Ask(_) if asking.len() >= pace.in_flight => None,
                Step::Ask(question) => match pace.spend(&rescan.node, now) {
                    Err(due) => Some(due),
                    Ok(()) => {
                        window.sent(question, now);
                        let (Question::Control(port) | Question::Proof(_, port)) = question;
                        let (address, attempt) = (rescan.address, Attempt { question, sent: now });
                        let payloads = payloads.clone();
                        asking.spawn(async move {
                            let payload = payloads.of(port.number.get(), 1);
                            (index, attempt, net::ask(address, port, payload, ATTEMPT_LIMIT).await)
                        });
                        continue;
                    }
                },
            };
            done = false;
            earliest = due.map_or(earliest, |due| Some(earliest.map_or(due, |other| other.min(due))));
            break;
        }
    }
    match done {
        true => Filled::Done,
        false => Filled::Wait(earliest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_kept_in_all_and_for_each_node_whatever_its_addresses() {
        let rescan = |node: &str, address: &str| Rescan {
            node: node.parse().unwrap(),
            address: address.parse().unwrap(),
            ports: Vec::new(),
            control: None,
        };
        let rescans = [rescan("n1", "192.0.2.1"), rescan("n1", "2001:db8::1"), rescan("n2", "192.0.2.2")];
        let limit = |rate| NonZeroU32::new(rate).unwrap();
        let now = Instant::now();
        // A burst is 10 ms worth.
        for (rate, rate_per_node, expected) in [(10_000, 200, [2, 0, 2]), (300, 200, [2, 0, 1])] {
            let limits = Limits { rate: limit(rate), rate_per_node: limit(rate_per_node), in_flight: 1 };
            let mut pace = Pace::new(&rescans, limits);
            let burst =
                rescans.each_ref().map(|rescan| (0..100).filter(|_| pace.spend(&rescan.node, now).is_ok()).count());
            assert_eq!(burst, expected);
        }
    }
}
