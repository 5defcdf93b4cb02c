//! Captured orders again, as they were and changed, by the scanner's own certificate and by others': 0 acts.

#![expect(clippy::print_stdout, reason = "what was tried is part of the test")]

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use deadlight_shared::wire::{Mode, Order};
use deadlight_shared::{Identity, OperatorSecret};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use tower::ServiceExt as _;

use super::connection::ReadBy;
use super::{Slots, router};
use crate::config::Config;
use crate::firewall::fake::{Fake, Tables};
use crate::identity::enrolled;
use crate::ledger::signed;
use crate::node::Node;

/// An optimized build tries a million.
const ATTACKS: u64 = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };
const NEWEST: u64 = 20;
/// Numbers on which no machine listens.
const PORTS: [u16; 3] = [2, 3, 6];

/// What an act would change: the kernel's tables and the ledger file.
type Traces = (usize, Tables, Vec<u8>);

#[tokio::test(flavor = "multi_thread")]
async fn replays_and_mutations_do_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (key, operator) = (directory.path().join("operator.pub"), OperatorSecret::generate().unwrap());
    std::fs::write(&key, operator.public().unwrap().to_pem()).unwrap();
    let config = Config {
        mode: Mode::Enforce,
        state_dir: directory.path().join("state"),
        outside: vec!["eth0".to_owned()],
        operator_key: Some(key),
        docker_socket: directory.path().join("docker.sock"),
        max_new_per_hour: usize::MAX,
        ..Config::default()
    };
    let kernel = Fake::default();
    let traces = || -> Traces {
        (kernel.writes(), kernel.tables(), std::fs::read(directory.path().join("state/ledger.json")).unwrap())
    };
    let keyring = Arc::new(enrolled(directory.path().join("keys"), "n1"));
    let agent = || {
        let node = Node::new("n1".parse().unwrap(), config.clone(), Box::new(kernel.clone()));
        router(Arc::new(node), Arc::clone(&keyring), Slots::new(Vec::new()))
    };
    let scanner = Identity::Scanner("office-a".parse().unwrap());
    let others = ["scanner/office-b", "agent/n1"].map(|who| format!("spiffe://deadlight/{who}").parse().unwrap());

    let mut router = agent();
    let captured: Vec<String> = (1..=NEWEST).map(|sequence| order(&operator, sequence)).collect();
    for order in &captured {
        let before = kernel.writes();
        assert_eq!(put(&router, &scanner, order).await, StatusCode::OK);
        assert!(kernel.writes() > before, "the orders themselves act");
    }
    let before = traces();
    let mut rng = Rng::with_seed(7);
    let mut answers = std::collections::BTreeMap::<_, u64>::new();
    for attack in 0..ATTACKS {
        if attack % (ATTACKS / 10) == 0 {
            router = agent();
        }
        let order = &captured[rng.usize(..captured.len())];
        let (what, answer) = match rng.u8(..10) {
            0..2 => ("replay", put(&router, &scanner, order).await),
            2 => ("by another", put(&router, &others[rng.usize(..2)], order).await),
            _ => match mutated(order, &mut rng) {
                Some(mutated) => ("mutation", put(&router, &scanner, &mutated).await),
                None => ("a new order, not sent", StatusCode::CONTINUE),
            },
        };
        assert!(!answer.is_server_error(), "{order}");
        *answers.entry((what, answer.as_u16())).or_default() += 1;
        if attack % 1_000 == 0 {
            assert_eq!(traces(), before, "by attack {attack}");
        }
    }
    assert_eq!(traces(), before);
    println!("{ATTACKS} attacks, by kind and answer: {answers:?}: 0 acts");
    assert!(answers.contains_key(&("mutation", 200)) && answers.contains_key(&("mutation", 422)), "{answers:?}");
}

/// Closes three ports or, with the operator's word, opens them again.
fn order(operator: &OperatorSecret, sequence: u64) -> String {
    let findings: Vec<_> = PORTS
        .iter()
        .filter(|_| sequence % 2 == 1)
        .map(|port| {
            serde_json::json!({
                "id": format!("{port:016x}"), "address": "198.51.100.11", "protocol": "tcp", "port": port,
                "evidence": "syn-ack",
            })
        })
        .collect();
    let allow: &[&str] = if sequence % 2 == 1 { &["80/tcp"] } else { &["2-3/tcp", "6/tcp"] };
    let order = serde_json::json!({
        "schema": Order::SCHEMA, "scanner": "office-a", "epoch": 1, "sequence": sequence, "scan": "x", "node": "n1",
        "expires_at": Timestamp::now() + SignedDuration::from_hours(100), "findings": findings, "allow": allow,
        "permit": signed(operator, "n1", sequence, &allow.join(","), None),
    });
    order.to_string()
}

/// `order` with some letters changed, cut out or put in; `None` where that made a newer order of its scanner.
fn mutated(order: &str, rng: &mut Rng) -> Option<String> {
    let mut bytes = order.as_bytes().to_vec();
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..bytes.len());
        let end = bytes.len().min(at + rng.usize(..3));
        let put: Vec<u8> = (0..rng.usize(..3)).map(|_| rng.u8(b' '..=b'~')).collect();
        bytes.splice(at..end, put);
    }
    let mutated = String::from_utf8(bytes).ok()?;
    let is_newer = |order: Order| (order.epoch, order.sequence) > (1, NEWEST);
    (!serde_json::from_str(&mutated).is_ok_and(is_newer)).then_some(mutated)
}

async fn put(router: &Router, peer: &Identity, body: &str) -> StatusCode {
    let mut request = Request::put("/v1/exposures").body(Body::from(body.to_owned())).unwrap();
    request.extensions_mut().insert(peer.clone());
    request.extensions_mut().insert(ReadBy::from_now());
    request.extensions_mut().insert(SocketAddr::from(([198, 51, 100, 1], 50_000)));
    router.clone().oneshot(request).await.unwrap().status()
}
