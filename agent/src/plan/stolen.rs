//! Whatever is ordered, in whatever sequence: no protected port is closed, and no more than the budget.

#![expect(clippy::print_stdout, reason = "what was tried is part of the test")]

use std::num::NonZeroU16;

use deadlight_shared::wire::{Order, ReportedFinding};
use deadlight_shared::{PortSet, Protocol};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};

use super::{decide, record};
use crate::config::Config;
use crate::inventory::{Listener, Process};
use crate::ledger::{Ledger, Permitted};

/// How often each port is ordered shut; an optimized build does it a thousand times.
const TIMES: u64 = if cfg!(debug_assertions) { 4 } else { 1_000 };
const BUDGET: usize = 20;
/// Findings of one order.
const MOST: usize = 1_000;

#[test]
fn every_port_over_and_over_closes_what_the_budget_allows() {
    let sshd = Process { program: "sshd".to_owned(), ..Process::default() };
    let listener =
        Listener { port: "2222/tcp".parse().unwrap(), address: [0; 4].into(), process: Some(sshd), is_hidden: false };
    let config = Config { protected: vec!["9443/tcp".parse().unwrap()], ..Config::default() };
    let protected: PortSet = "22,2222,2377,7443,7946,9443/tcp,4789,7946/udp".parse().unwrap();
    let mut rng = Rng::with_seed(1);
    let (mut orders, mut ledger, mut now) = (orders(), Ledger::default(), Timestamp::UNIX_EPOCH);
    let (mut hours, mut asked, mut opened) = (1, 0, 0);
    for time in 0..TIMES {
        rng.shuffle(&mut orders);
        if time == TIMES / 2 {
            now += SignedDuration::from_hours(1);
            hours += 1;
        }
        for order in &orders {
            // Each order may also take back what others closed, to spend less or to close something else.
            let permitted = if rng.bool() { Permitted::All } else { Permitted::default() };
            let allow = if rng.u8(..) == 0 { "1-65535/tcp".parse().unwrap() } else { PortSet::default() };
            let order = &Order { allow, ..order.clone() };
            let policy = config.policy(std::slice::from_ref(&listener), false, permitted);
            let (before, decisions) = (ledger.closures.len(), decide(order, &ledger, &policy, now));
            record(order, &decisions, &mut ledger, &policy, now);
            opened += before.saturating_sub(ledger.closures.len());
            asked += decisions.len();
        }
        assert!(ledger.closures.len() + opened <= hours * BUDGET, "{} in {hours} h", ledger.closures.len());
        assert_eq!(ledger.closed().common(&protected), None);
    }
    assert!(!ledger.closures.is_empty(), "nothing was closed at all");
    println!("{asked} findings in {hours} h: {} ports closed and {opened} opened again", ledger.closures.len());
}

/// Every port of both protocols, so many in an order.
fn orders() -> Vec<Order> {
    let findings = Protocol::ALL.into_iter().flat_map(|protocol| {
        (1..=u16::MAX).filter_map(NonZeroU16::new).map(move |port| ReportedFinding {
            id: format!("{:016x}", u32::from(port.get()) << 1 | u32::from(protocol == Protocol::Tcp)).parse().unwrap(),
            address: [198, 51, 100, 11].into(),
            protocol,
            port,
            evidence: "syn-ack".to_owned(),
        })
    });
    let order = |findings: &[ReportedFinding]| Order {
        schema: Order::SCHEMA.to_owned(),
        scanner: "office-a".parse().unwrap(),
        epoch: 1,
        sequence: 1,
        scan: "x".to_owned(),
        node: "n1".parse().unwrap(),
        expires_at: Timestamp::UNIX_EPOCH,
        findings: findings.to_vec(),
        allow: PortSet::default(),
        permit: None,
        peers: Vec::new(),
    };
    findings.collect::<Vec<_>>().chunks(MOST).map(order).collect()
}
