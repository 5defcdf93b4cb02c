//! Which address is asked which way.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use deadlight_shared::hint::causes;
use deadlight_shared::{Port, PortSet, Protocol};

use super::seen::Seen;
use super::syn::{Sockets, SynDriver};
use super::{Method, Plan, SweepError};
use crate::net::{self, NoWay, Way, Ways};
use crate::probe::{Cost, Engine, Lane, Limits};

/// The slowest rate of a part of the sweep that runs beside a larger one.
const LEAST_SHARE: u32 = 50;

/// The two parts of a sweep.
pub(super) struct Lanes {
    /// By packets of our own.
    pub(super) syn: Option<SynDriver>,
    /// By sockets of the kernel: UDP, and TCP where packets cannot be sent.
    pub(super) sockets: Engine,
}

/// Sorts all targets of `plan` into lanes; those without a route go to `seen`.
pub(super) async fn prepare(plan: &Plan, seen: &mut Seen<'_>) -> Result<Lanes, SweepError> {
    let (mut tcp, mut sockets) = (Vec::new(), Vec::new());
    let mut numbers = Numbers::default();
    for (index, node) in plan.nodes.iter().enumerate() {
        for &address in &node.addresses {
            seen.plan(node.ports.len());
            if let Err(error) = net::check_route(address) {
                seen.skip(node, address, &error);
                continue;
            }
            let ports = match plan.known.get(&address) {
                None => node.ports.clone(),
                Some(known) => {
                    seen.know(address, known);
                    let is_new = |port: &Port| !known.closed.contains(*port) && !known.filtered.contains(*port);
                    node.ports.iter().filter(is_new).collect()
                }
            };
            for (protocol, lanes) in [(Protocol::Tcp, &mut tcp), (Protocol::Udp, &mut sockets)] {
                let ports = numbers.of(&ports, protocol);
                if !ports.is_empty() {
                    lanes.push(Lane { node: index, address, protocol, ports });
                }
            }
        }
    }
    let (packets, by_connect) = match plan.method {
        Method::Connect => (None, tcp),
        Method::Auto | Method::Syn => by_packets(plan, tcp, seen).await?,
    };
    let syn = packets.as_ref().map_or(&[][..], |(_, lanes)| lanes);
    let rates = Rates::new(plan, syn, &sockets, &by_connect);
    let limits = |rate, cost| Limits { rate, rate_per_node: plan.rate_per_node, cost };
    let driver = match packets {
        None => None,
        Some((opened, lanes)) => Some(SynDriver::new(opened, lanes, limits(rates.syn, Cost::Packet))?),
    };
    sockets.extend(by_connect);
    let rate = if driver.is_some() { rates.sockets } else { plan.rate };
    let engine = Engine::new(sockets, limits(rate, Cost::Connection), random()?);
    Ok(Lanes { syn: driver, sockets: engine })
}

/// Sockets for packets with the lanes that can be asked by them, and the lanes that only the kernel can
/// ask. Nothing is sent before it is known that packets may be.
async fn by_packets(
    plan: &Plan,
    lanes: Vec<Lane>,
    seen: &mut Seen<'_>,
) -> Result<(Option<(Sockets, Vec<(Lane, Way)>)>, Vec<Lane>), SweepError> {
    let opened = match Sockets::open(&lanes) {
        Ok(opened) => Ok(opened),
        Err(SweepError::Syn(error)) if plan.method == Method::Auto => Err(error),
        Err(error) => return Err(error),
    };
    let mut ways = match Ways::new() {
        Ok(ways) => ways,
        Err(error) => {
            seen.note(format!("TCP is asked by connect: failed to open a netlink socket: {error}"));
            return Ok((None, lanes));
        }
    };
    let first = |lane: &Lane| Some((lane.address, Port::new(Protocol::Tcp, *lane.ports.first()?)?));
    let targets: Vec<_> = lanes.iter().filter_map(first).collect();
    let routes = ways.routes(&targets).await;
    let (mut found, mut others) = (Vec::new(), Vec::new());
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            if routes.iter().any(Result::is_ok) {
                seen.note(format!("TCP is asked by connect: {}", causes(&error)));
            }
            for (lane, route) in lanes.into_iter().zip(routes) {
                if let Err(error) = route {
                    seen.note(format!("{} is asked by connect: {}", lane.address, causes(&error)));
                }
                others.push(lane);
            }
            return Ok((None, others));
        }
    };
    for (lane, way) in lanes.into_iter().zip(ways.along(routes, &targets).await) {
        match way {
            Ok(way) => found.push((lane, way)),
            // Nor could the kernel reach it.
            Err(error @ NoWay::Neighbour(_)) => seen.unreached(&lane, error.to_string()),
            Err(error) => {
                seen.note(format!("{} is asked by connect: {}", lane.address, causes(&error)));
                others.push(lane);
            }
        }
    }
    match found.is_empty() {
        true => {
            opened.close();
            Ok((None, others))
        }
        false => Ok((Some((opened, found)), others)),
    }
}

/// Port numbers of one protocol; nodes with the same ports share them.
#[derive(Default)]
struct Numbers(HashMap<Vec<(u16, u16)>, Arc<[u16]>>);

impl Numbers {
    fn of(&mut self, ports: &PortSet, protocol: Protocol) -> Arc<[u16]> {
        let ranges = ports.ranges(protocol);
        let numbers = || ranges.iter().flat_map(|&(low, high)| low..=high).collect();
        Arc::clone(self.0.entry(ranges.to_vec()).or_insert_with(numbers))
    }
}

/// The rate of the plan, divided by the number of targets.
struct Rates {
    syn: NonZeroU32,
    sockets: NonZeroU32,
}

impl Rates {
    fn new(plan: &Plan, syn: &[(Lane, Way)], udp: &[Lane], by_connect: &[Lane]) -> Self {
        let by_packets: u64 = syn.iter().map(|(lane, _)| lane.ports.len() as u64).sum();
        let by_sockets: u64 = udp.iter().chain(by_connect).map(|lane| lane.ports.len() as u64).sum();
        let rate = plan.rate.get();
        let share = u64::from(rate) * by_sockets / (by_packets + by_sockets).max(1);
        let least = if by_sockets > 0 { LEAST_SHARE.min(rate / 2) } else { 0 };
        let sockets = u32::try_from(share).unwrap_or(rate).max(least);
        let at_least_one = |rate| NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN);
        Self { syn: at_least_one(rate - sockets), sockets: at_least_one(sockets) }
    }
}

/// A number that nobody can foresee.
pub(super) fn random() -> Result<u64, SweepError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SweepError::Random)?;
    Ok(u64::from_le_bytes(bytes))
}
