//! The second look at every open port: a full handshake by the kernel, and what is behind it.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use deadlight_shared::{Evidence, Port, PortState, Protocol};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use super::Plan;
use super::found::{By, Found};
use super::lanes::random;
use super::seen::Seen;
use crate::identify::{Looked, look};
use crate::net;
use crate::probe::Outcome;

/// An address with more open ports is not believed: something before it answers in its place.
pub const MOST_OPEN: usize = 50;
/// Handshakes at once.
const AT_ONCE: usize = 64;
/// One handshake: long enough for the kernel to repeat its SYN twice.
const LIMIT: Duration = Duration::from_millis(3_500);
/// Handshakes tried before a port that answers a SYN counts as unknown.
const TRIES: u32 = 3;
/// Where so many ports were asked, [`MOST_OPEN`] tells liars apart.
const MANY: usize = 1_000;
/// Ports of a random sample. No host has something behind each of them.
const SAMPLE: usize = 8;

/// Looks again at what comes in, until nothing more can come.
pub(super) async fn confirm(plan: &Plan, mut found: UnboundedReceiver<Found>, seen: &mut Seen<'_>) {
    let mut open: HashMap<IpAddr, usize> = HashMap::new();
    let (mut queue, mut alone) = (VecDeque::<Found>::new(), Vec::new());
    let mut looking: JoinSet<(Found, Looked)> = JoinSet::new();
    let mut ended = false;
    loop {
        while looking.len() < AT_ONCE
            && let Some(next) = queue.pop_front()
        {
            match open.get(&next.address).is_some_and(|count| *count > MOST_OPEN) {
                true => keep(seen, &next, None),
                false => drop(looking.spawn(second_look(next, plan.identify))),
            }
        }
        tokio::select! {
            event = found.recv(), if !ended => match event {
                None => ended = true,
                Some(found) if found.state != PortState::Open => keep(seen, &found, None),
                Some(found) if found.by == By::SocketOfThisHost => alone.push(found),
                Some(found) if found.port.protocol == Protocol::Udp => keep(seen, &found, None),
                Some(found) => {
                    *open.entry(found.address).or_default() += 1;
                    queue.push_back(found);
                }
            },
            Some(joined) = looking.join_next() => {
                let (found, looked) = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                judge(seen, &found, looked);
            }
            else => break,
        }
    }
    // On this very host two of our own sockets can meet. Now no other is open.
    for found in alone {
        let looked = match found.port.protocol {
            Protocol::Tcp => look(found.address, found.port, plan.identify, LIMIT).await,
            Protocol::Udp => {
                let payload = plan.payloads.of(found.port.number.get(), found.attempts);
                Looked { outcome: net::ask(found.address, found.port, payload, LIMIT).await.outcome, service: None }
            }
        };
        judge(seen, &found, looked);
    }
}

/// Finds the addresses that answer where nothing can be.
pub(super) async fn find_liars(plan: &Plan, seen: &mut Seen<'_>) {
    for (address, open) in seen.open_tcp() {
        let Some((node, _)) = open.first() else { continue };
        let asked = &plan.nodes[*node].ports;
        let asked_tcp = asked.iter().filter(|port| port.protocol == Protocol::Tcp).count();
        let suspect = open.len() == asked_tcp && asked_tcp < MANY;
        if open.len() > MOST_OPEN || suspect && answers_everywhere(address, |port| asked.contains(port)).await {
            seen.liar(address, open.len());
        }
    }
}

async fn second_look(found: Found, identify: bool) -> (Found, Looked) {
    let mut tries = 0;
    loop {
        tries += 1;
        let looked = look(found.address, found.port, identify, LIMIT).await;
        if tries == TRIES || matches!(looked.outcome, Outcome::Answered { .. }) {
            return (found, looked);
        }
    }
}

/// What a port is after its second look.
fn judge(seen: &mut Seen<'_>, found: &Found, looked: Looked) {
    match (looked.outcome, found.by) {
        (Outcome::Answered { .. }, _) | (_, By::Socket) => keep(seen, found, looked.service),
        (Outcome::Refused, By::SocketOfThisHost) => {
            let evidence = match found.port.protocol {
                Protocol::Tcp => Evidence::Rst,
                Protocol::Udp => Evidence::PortUnreachable,
            };
            seen.keep(found, PortState::Closed, evidence, None);
        }
        (Outcome::NotAsked(reason) | Outcome::Short(reason), _) => {
            seen.keep(found, PortState::Unknown, Evidence::NotAsked(reason), None);
        }
        (_, _) => {
            let reason = "it answered once, and no handshake could be completed".to_owned();
            seen.keep(found, PortState::Unknown, Evidence::Inconclusive(reason), None);
        }
    }
}

fn keep(seen: &mut Seen<'_>, found: &Found, service: Option<String>) {
    let evidence = match (found.state, found.port.protocol) {
        (PortState::Open, Protocol::Tcp) => Evidence::SynAck,
        (PortState::Open, Protocol::Udp) => Evidence::UdpReply,
        (_, Protocol::Tcp) => Evidence::Rst,
        (_, Protocol::Udp) => Evidence::PortUnreachable,
    };
    seen.keep(found, found.state, evidence, service);
}

/// Whether every port of a random sample answers; ports that were `asked` are left out.
async fn answers_everywhere(address: IpAddr, asked: impl Fn(Port) -> bool) -> bool {
    let mut sample = std::collections::BTreeSet::new();
    while sample.len() < SAMPLE {
        let Ok(number) = random() else { return false };
        let [low, high, ..] = number.to_le_bytes();
        sample.extend(Port::new(Protocol::Tcp, u16::from_le_bytes([low, high])).filter(|port| !asked(*port)));
    }
    let mut asking: JoinSet<_> =
        sample.into_iter().map(|port| async move { net::ask(address, port, &[], LIMIT).await.outcome }).collect();
    while let Some(answer) = asking.join_next().await {
        if !matches!(answer, Ok(Outcome::Answered { .. })) {
            return false;
        }
    }
    true
}
