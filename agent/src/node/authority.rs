//! With an operator's key, an allowlist without the operator's signature is as none: in orders, in the
//! posture, in the rules for allowed ports and in what is said of them.

use deadlight_shared::wire::{Mode, Order, OutcomeStatus, Report};
use deadlight_shared::{OperatorSecret, SignedPermit};
use jiff::civil::{Date, date};
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

use super::Node;
use crate::config::{Config, Posture};
use crate::firewall::fake::Fake;
use crate::ledger::{Answered, Closure, Ledger, Origin, Store, signed};

/// Numbers on which no machine listens.
const ALLOW: [&str; 5] = ["2/tcp", "3/tcp", "4/tcp", "5/udp", "6/tcp"];
const LONG_AGO: Date = date(2020, 1, 1);

struct World {
    node: Node,
    _directory: TempDir,
}

impl World {
    /// A node whose ledger knows closures of every origin, and an order from before it knew an operator.
    fn new(posture: Posture, operator: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("operator.pub");
        std::fs::write(&key, operator).unwrap();
        let config = Config {
            mode: Mode::Enforce,
            state_dir: directory.path().join("state"),
            outside: vec!["eth0".to_owned()],
            operator_key: Some(key),
            docker_socket: directory.path().join("docker.sock"),
            posture,
            ..Config::default()
        };
        let mut ledger = Ledger::default();
        let of = |name: &str| Origin::Order(name.parse().unwrap());
        let origins = [of("office-a"), Origin::Posture, Origin::Local, of("office-b")];
        for (port, origin) in ALLOW.iter().zip(origins) {
            ledger.close(Closure { port: port.parse().unwrap(), origin, since: Timestamp::UNIX_EPOCH });
        }
        let before = order(1, &ALLOW, None);
        ledger.orders.insert(before.scanner.clone(), Answered::begun(&before));
        let store = Store::new(&config.state_dir);
        drop(store.lock().unwrap());
        store.save(&ledger).unwrap();
        Self { node: Node::new("n1".parse().unwrap(), config, Box::new(Fake::default())), _directory: directory }
    }

    /// Everything that could show that a port is allowed, after `order` and a look of the node's own.
    async fn after(&self, order: &Order) -> (Vec<OutcomeStatus>, String, String, Vec<String>) {
        let report = self.answer(order).await;
        self.node.reconcile().await.unwrap();
        let ledger = self.node.host.load().unwrap();
        let policy = self.node.policy(&[], &ledger);
        let desired = self.node.desired(&ledger, &policy);
        let allowed_by = |port: &str| ledger.allowed_by(port.parse().unwrap(), &policy.permitted);
        let said = ALLOW.into_iter().flat_map(allowed_by).collect();
        let outcomes = report.outcomes.iter().map(|outcome| outcome.status).collect();
        (outcomes, desired.closed.to_string(), desired.allowed.to_string(), said)
    }

    async fn answer(&self, order: &Order) -> Report {
        self.node.answer(order, [198, 51, 100, 1].into()).await.unwrap()
    }
}

/// Reports 6/tcp and 7/tcp, and allows `allow`.
fn order(sequence: u64, allow: &[&str], permit: Option<SignedPermit>) -> Order {
    let finding = |port: u16| {
        serde_json::json!({
            "id": format!("{port:016x}"), "address": "198.51.100.11", "protocol": "tcp", "port": port,
            "evidence": "syn-ack",
        })
    };
    serde_json::from_value(serde_json::json!({
        "schema": Order::SCHEMA, "scanner": "office-a", "epoch": 1, "sequence": sequence, "scan": "x", "node": "n1",
        "expires_at": Timestamp::now() + SignedDuration::from_mins(10), "findings": [finding(6), finding(7)],
        "allow": allow, "permit": permit,
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowlist_that_is_not_signed_is_as_none() {
    let (operator, stranger) = (OperatorSecret::generate().unwrap(), OperatorSecret::generate().unwrap());
    let key = operator.public().unwrap().to_pem();
    let all = ALLOW.join(",");
    let good = signed(&operator, "n1", 9, &all, None);
    let widened = SignedPermit { text: good.text.replacen("2-4/tcp", "1-99/tcp", 1), ..good.clone() };
    assert_ne!(widened, good);
    for posture in [Posture::Reported, Posture::Allowlist] {
        let without = World::new(posture, &key).after(&order(2, &[], None)).await;
        assert_eq!(without.0, [OutcomeStatus::Enforced; 2], "both findings are closed");
        assert_eq!((without.2.as_str(), without.3.len()), ("", 0), "nothing is allowed");
        for (what, operator_key, permit) in [
            ("no permit", &key, None),
            ("a stranger's permit", &key, Some(signed(&stranger, "n1", 9, &all, None))),
            ("another node's permit", &key, Some(signed(&operator, "n2", 9, &all, None))),
            ("an expired entry", &key, Some(signed(&operator, "n1", 9, &all, Some(LONG_AGO)))),
            ("a widened entry", &key, Some(widened.clone())),
            ("an operator's key that cannot be read", &"no key".to_owned(), Some(good.clone())),
        ] {
            let unsigned = World::new(posture, operator_key).after(&order(2, &ALLOW, permit)).await;
            assert_eq!(unsigned, without, "{what}, {posture:?}");
        }
        let signed = World::new(posture, &key).after(&order(2, &ALLOW, Some(good.clone()))).await;
        assert_eq!(signed.0, [OutcomeStatus::Refused, OutcomeStatus::Enforced], "6/tcp is allowed");
        assert_eq!((signed.1.as_str(), signed.2.as_str()), ("4/tcp,7/tcp,5/udp", "2-3/tcp,6/tcp"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_says_what_is_not_signed_and_why() {
    let operator = OperatorSecret::generate().unwrap();
    let world = World::new(Posture::Reported, &operator.public().unwrap().to_pem());
    let permit = |number, ports| Some(signed(&operator, "n1", number, ports, None));
    for (sequence, permit, wanted) in [
        (2, None, ["opens it: 2-4/tcp,6/tcp,5/udp"].as_slice()),
        (3, permit(7, "2/tcp"), &["opens it: 3-4/tcp,6/tcp,5/udp"]),
        (4, permit(7, "2-3/tcp"), &["forked", "opens it: 3-4/tcp"]),
        (5, permit(6, "2-6/tcp,5/udp"), &["rolled back: its number is 6, and 7 was taken", "opens it: 3-4/tcp"]),
        (6, permit(8, "2-6/tcp,5/udp"), &[]),
    ] {
        let warnings = world.answer(&order(sequence, &ALLOW, permit)).await.warnings;
        assert_eq!(warnings.len(), wanted.len(), "{warnings:?}");
        for (warning, wanted) in warnings.iter().zip(wanted) {
            assert!(warning.contains(wanted), "{warning}");
        }
    }
}
