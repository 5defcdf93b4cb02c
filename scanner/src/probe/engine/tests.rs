//! Sweeps of the simulated network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use deadlight_shared::Protocol;

use super::super::Pacer;
use super::super::simulation::{Host, Links, Network, Shut, Verdicts};
use super::*;

const ALL: std::ops::RangeInclusive<u16> = 1..=4_000;
const RATE: u32 = 100_000;
const FAR: Links = Links {
    loss: 0.0,
    delay: Duration::from_millis(20),
    jitter: Duration::from_millis(5),
    twice: 0.0,
    forged: false,
    outage: None,
};

fn address(number: u8) -> IpAddr {
    match number % 2 {
        0 => IpAddr::from([198, 51, 100, number]),
        _ => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)]),
    }
}

fn ports() -> Vec<u16> {
    ALL.collect()
}

fn twelve(seed: u64) -> BTreeSet<u16> {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.u16(ALL)).take(12).collect()
}

/// Sweeps one host; the network and what was made of it.
fn sweep(seed: u64, links: Links, host: Host) -> (Verdicts, u64) {
    let mut network = Network::new(Instant::now(), seed, links, [(address(seed.to_le_bytes()[0]), host)]);
    let verdicts = network.sweep(&ports(), RATE);
    (verdicts, network.syns)
}

fn opened(verdicts: &Verdicts) -> BTreeSet<u16> {
    verdicts.open.iter().map(|(_, port)| *port).collect()
}

#[test]
fn a_closed_node_costs_one_packet_a_port() {
    let (verdicts, syns) = sweep(1, FAR, Host::new(Shut::Reset, twelve(1)));
    assert_eq!(opened(&verdicts), twelve(1));
    assert_eq!(verdicts.closed + 12, 4_000);
    assert!((4_000..4_100).contains(&syns), "{syns}");
    assert!(verdicts.took < Duration::from_millis(150), "{:?}", verdicts.took);
}

#[test]
fn a_filtered_node_is_asked_until_silence_means_something() {
    let (verdicts, syns) = sweep(2, FAR, Host::new(Shut::Silent, twelve(2)));
    assert_eq!(opened(&verdicts), twelve(2));
    assert_eq!((verdicts.closed, verdicts.filtered), (0, 4_000 - 12));
    assert_eq!(verdicts.unknown, []);
    assert!((2..=4).contains(&verdicts.most_attempts), "{}", verdicts.most_attempts);
    assert!(syns < 5 * 4_000, "{syns}");
    let seconds = verdicts.took.as_secs_f64();
    assert!((1.0..1.6).contains(&seconds), "the attempts span a second: {seconds}");
}

#[test]
fn nothing_is_missed_and_nothing_invented_at_any_loss() {
    const FEW: std::ops::RangeInclusive<u16> = 1..=1_000;
    for (percent, runs) in [(1, 100), (5, 100), (10, 20)] {
        for seed in 0..runs {
            let loss = f64::from(percent) / 100.0;
            let links = Links { loss, twice: 0.02, jitter: Duration::from_millis(30), forged: seed % 4 == 0, ..FAR };
            let shut = if seed % 3 == 0 { Shut::Reset } else { Shut::Silent };
            let mut rng = fastrand::Rng::with_seed(seed);
            let open: BTreeSet<u16> = std::iter::repeat_with(|| rng.u16(FEW)).take(12).collect();
            let host = (address(seed.to_le_bytes()[0]), Host::new(shut, open.clone()));
            let verdicts = Network::new(Instant::now(), seed, links, [host]).sweep(&FEW.collect::<Vec<_>>(), RATE);
            assert_eq!(opened(&verdicts), open, "loss {percent} %, seed {seed}");
            assert_eq!(verdicts.unknown, [], "loss {percent} %, seed {seed}");
        }
    }
}

#[test]
fn more_loss_costs_more_attempts() {
    let attempts = |loss| sweep(4, Links { loss, ..FAR }, Host::new(Shut::Silent, twelve(4))).0.most_attempts;
    let [none, little, much] = [0.0, 0.02, 0.10].map(attempts);
    assert!(none < little && little < much, "{none} {little} {much}");
}

#[test]
fn a_loss_that_no_number_of_attempts_makes_up_for_is_said() {
    let (verdicts, _) = sweep(5, Links { loss: 0.4, ..FAR }, Host::new(Shut::Silent, ALL.step_by(40)));
    assert_eq!(verdicts.filtered, 0);
    let [(reason, count)] = verdicts.unknown.as_slice() else { panic!("{:?}", verdicts.unknown) };
    assert!(reason.contains("silence proves nothing"), "{reason}");
    assert!(*count >= 3_900, "{count}");
}

#[test]
fn a_node_that_falls_silent_meanwhile_is_not_called_filtered() {
    let host = Host { dies: Some(Duration::from_millis(60)), ..Host::new(Shut::Silent, ALL.step_by(10)) };
    let (verdicts, _) = sweep(6, FAR, host);
    assert!(!verdicts.open.is_empty());
    assert_eq!(verdicts.filtered, 0, "{verdicts:?}");
    assert!(!verdicts.unknown.is_empty());
}

#[test]
fn an_outage_does_not_eat_every_attempt() {
    for seed in 0..20 {
        let from = Duration::from_millis(fastrand::Rng::with_seed(seed).u64(0..900));
        let outage = Some((from, from + Duration::from_millis(700)));
        let (verdicts, _) = sweep(seed, Links { outage, ..FAR }, Host::new(Shut::Silent, twelve(seed)));
        let missed: Vec<_> = twelve(seed).difference(&opened(&verdicts)).copied().collect();
        assert!(missed.is_empty() || !verdicts.unknown.is_empty(), "seed {seed}: missed {missed:?} in silence");
    }
}

#[test]
fn refusals_that_are_rationed_hide_no_open_port() {
    for shut in [Shut::Reset, Shut::Unreachable] {
        let ration = Some(Pacer::new(NonZeroU32::new(200).unwrap()));
        let (verdicts, _) = sweep(8, FAR, Host { ration, ..Host::new(shut, twelve(8)) });
        assert_eq!(opened(&verdicts), twelve(8));
        assert!(verdicts.filtered + verdicts.unreachable > 3_000, "{verdicts:?}");
        assert_eq!(verdicts.closed > 0, shut == Shut::Reset);
    }
}

#[test]
fn a_black_hole_is_asked_a_bounded_number_of_times() {
    let (verdicts, syns) = sweep(9, FAR, Host::new(Shut::Silent, []));
    assert_eq!((verdicts.filtered, syns), (4_000, 3 * 4_000));
}

#[test]
fn a_line_that_is_overrun_is_asked_more_slowly() {
    let line = Some(Pacer::new(NonZeroU32::new(20_000).unwrap()));
    let open: Vec<_> = ALL.step_by(20).collect();
    let host = Host { line, ..Host::new(Shut::Silent, open.clone()) };
    let (verdicts, _) = sweep(10, FAR, host);
    assert_eq!(opened(&verdicts), open.into_iter().collect());
    assert_eq!(verdicts.unknown, []);
    assert!(verdicts.most_attempts < 20, "{}", verdicts.most_attempts);
}

#[test]
fn a_proxy_that_answers_everything_is_seen_answering_everything() {
    let (verdicts, syns) = sweep(11, FAR, Host::new(Shut::Silent, ALL));
    assert_eq!(verdicts.open.len(), 4_000);
    assert!(syns < 4_100, "{syns}");
}

#[test]
fn many_nodes_are_asked_side_by_side() {
    let hosts = (0..16).map(|number| (address(number), Host::new(Shut::Silent, twelve(number.into()))));
    let mut network = Network::new(Instant::now(), 12, Links { loss: 0.01, ..FAR }, hosts);
    let verdicts = network.sweep(&ports(), RATE);
    assert_eq!(verdicts.unknown, []);
    for number in 0..16 {
        let seen: BTreeSet<_> =
            verdicts.open.iter().filter(|seen| seen.0 == address(number)).map(|seen| seen.1).collect();
        assert_eq!(seen, twelve(number.into()), "host {number}");
    }
    let pass = 16.0 * 4_000.0 / f64::from(RATE);
    assert!(verdicts.took.as_secs_f64() < 6.0 * pass + 1.0, "{:?}", verdicts.took);
}

fn lane(node: usize, number: u8, ports: &[u16]) -> Lane {
    Lane { node, address: address(number), protocol: Protocol::Tcp, ports: ports.into() }
}

fn engine(lanes: Vec<Lane>, rate: u32, rate_per_node: u32) -> Engine {
    let [rate, rate_per_node] = [rate, rate_per_node].map(|rate| NonZeroU32::new(rate).unwrap());
    Engine::new(lanes, Limits { rate, rate_per_node, cost: Cost::Packet }, 3)
}

#[test]
fn every_target_is_asked_once_before_any_is_asked_again() {
    let mut engine = engine(vec![lane(0, 1, &[1, 2, 3]), lane(1, 2, &[1, 2]), lane(2, 4, &[])], 1_000_000, 1_000_000);
    let now = Instant::now();
    let mut asked = BTreeSet::new();
    while let Step::Ask(probe) = engine.next(now) {
        assert!(asked.insert((probe.lane, probe.port)), "{probe:?} again");
        assert_eq!((probe.attempt(), probe.is_control()), (1, false));
    }
    assert_eq!(asked, [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)].into());
}

#[test]
fn a_node_is_not_asked_faster_than_it_may() {
    let all: Vec<u16> = (1..=1_000).collect();
    let lanes = vec![lane(0, 1, &all), lane(0, 2, &all), lane(1, 4, &all)];
    let mut engine = engine(lanes, 1_000_000, 100);
    let start = Instant::now();
    let (mut now, mut by_node) = (start, [0, 0]);
    while now < start + Duration::from_secs(2) {
        match engine.next(now) {
            Step::Ask(probe) => by_node[usize::from(probe.lane == 2)] += 1,
            Step::Wait(due) => now = due.max(now + Duration::from_nanos(1)),
            Step::Done => panic!("done"),
        }
    }
    assert!(by_node.iter().all(|count| (195..=205).contains(count)), "{by_node:?}");
}

#[test]
fn what_could_not_be_sent_is_asked_again_and_what_cannot_be_asked_is_unknown() {
    let mut engine = engine(vec![lane(0, 1, &[80, 443])], 1_000_000, 1_000_000);
    let now = Instant::now();
    let (Step::Ask(first), Step::Ask(second)) = (engine.next(now), engine.next(now)) else { panic!() };
    engine.unsent(first, now);
    assert_eq!(engine.next(now), Step::Ask(first));
    engine.not_asked(second, "permission denied", now);
    assert_eq!(engine.heard(0, first.port, first.serial, Reply::Refused, now), Some((PortState::Closed, 1)));
    assert_eq!(engine.next(now), Step::Done);
    let left: Vec<_> = engine.leftovers().collect();
    let unknown = Some("permission denied".to_owned());
    assert_eq!(left, [(0, Leftover { ports: vec![second.port], unreachable: false, attempts: 0, unknown })]);
}

/// A control that could not leave, and an answer that came after its port was given up.
#[test]
fn a_port_is_counted_once_whatever_this_host_runs_into() {
    let mut engine = engine(vec![lane(0, 1, &[80, 443])], 1_000_000, 1_000_000);
    let now = Instant::now();
    let (Step::Ask(first), Step::Ask(second)) = (engine.next(now), engine.next(now)) else { panic!() };
    assert_eq!(engine.heard(0, first.port, first.serial, Reply::Answered, now), Some((PortState::Open, 1)));
    let Step::Ask(control) = engine.next(now) else { panic!() };
    assert!(control.is_control());
    engine.not_asked(control, "network is unreachable", now);
    engine.not_asked(second, "network is unreachable", now);
    assert_eq!(engine.heard(0, second.port, second.serial, Reply::Answered, now), Some((PortState::Open, 1)));
    assert_eq!(engine.next(now), Step::Done);
    assert_eq!(engine.leftovers().collect::<Vec<_>>(), []);
}

#[test]
fn a_handshake_beats_a_refusal_but_not_the_other_way_round() {
    let mut engine = engine(vec![lane(0, 1, &[80, 443])], 1_000_000, 1_000_000);
    let now = Instant::now();
    let _probes = (engine.next(now), engine.next(now));
    assert_eq!(engine.heard(0, 80, 0, Reply::Refused, now), Some((PortState::Closed, 1)));
    assert_eq!(engine.heard(0, 80, 0, Reply::Answered, now), Some((PortState::Open, 1)));
    assert_eq!(engine.heard(0, 80, 0, Reply::Refused, now), None);
    assert_eq!(engine.heard(0, 81, 0, Reply::Answered, now), None, "nobody asked that port");
    assert_eq!(engine.heard(7, 80, 0, Reply::Answered, now), None, "nor that lane");
}

#[test]
fn an_interrupted_sweep_claims_nothing_about_the_rest() {
    let mut engine = engine(vec![lane(0, 1, &[80, 443])], 1_000_000, 1_000_000);
    let _probe = engine.next(Instant::now());
    let left: Vec<_> = engine.leftovers().map(|(_, left)| (left.ports, left.unknown)).collect();
    assert_eq!(left, [(vec![80, 443], Some("the sweep was interrupted".to_owned()))]);
}
