//! The second look: every port that should be closed now is asked until that is proven.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use deadlight_shared::{Name, Port};
use tokio::task::JoinSet;

use super::{Filled, sleep_until};
use crate::net;
use crate::probe::Pacer;
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

/// Looks at all of `rescans` at once, with at most `rate` probes a second and `in_flight` sockets.
pub async fn rescan(rescans: &[Rescan], rate: NonZeroU32, in_flight: usize) -> Vec<Checked> {
    let mut windows: Vec<_> =
        rescans.iter().map(|rescan| Window::new(rescan.ports.iter().copied(), rescan.control)).collect();
    let mut pacer = Pacer::new(rate);
    let mut asking: JoinSet<(usize, Question, net::Asked)> = JoinSet::new();
    while let Filled::Wait(due) = fill(&mut windows, rescans, &mut pacer, &mut asking, in_flight) {
        let joined = tokio::select! {
            joined = asking.join_next(), if !asking.is_empty() => joined,
            () = sleep_until(due) => None,
        };
        if let Some(joined) = joined {
            let (index, question, asked) = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            windows[index].record(question, asked.source_port, asked.outcome.into());
        }
    }
    let checked = |(rescan, window): (&Rescan, &Window)| {
        let (node, address) = (rescan.node.clone(), rescan.address);
        let checked = move |(port, verdict)| Checked { node: node.clone(), address, port, verdict };
        window.verdicts().map(checked).collect::<Vec<_>>()
    };
    rescans.iter().zip(&windows).flat_map(checked).collect()
}

/// Starts what may start now.
fn fill(
    windows: &mut [Window],
    rescans: &[Rescan],
    pacer: &mut Pacer,
    asking: &mut JoinSet<(usize, Question, net::Asked)>,
    in_flight: usize,
) -> Filled {
    let (mut done, mut earliest) = (true, None::<Instant>);
    for (index, window) in windows.iter_mut().enumerate() {
        loop {
            let now = Instant::now();
            let due = match window.next(now) {
                Step::Done => break,
                Step::Wait(due) => due,
                Step::Ask(_) if asking.len() >= in_flight => None,
                Step::Ask(question) => match pacer.ready(now) {
                    Err(due) => Some(due),
                    Ok(()) => {
                        pacer.spend();
                        window.sent(question, now);
                        let (Question::Control(port) | Question::Proof(_, port)) = question;
                        let address = rescans[index].address;
                        asking.spawn(async move { (index, question, net::ask(address, port, ATTEMPT_LIMIT).await) });
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
