//! What shall be closed: pure decisions from an order, the ledger and the local policy.

mod admission;
mod policy;
mod reversed;
#[cfg(test)]
mod stolen;

use deadlight_shared::wire::Order;
use deadlight_shared::{FindingId, Port, PortSet};
use jiff::{SignedDuration, Timestamp};

use crate::ledger::{Closure, Ledger, Origin};

pub use admission::{Inadmissible, admit};
pub use policy::{Policy, Protection};
pub use reversed::reversed;

/// What is decided about one finding of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The finding.
    pub finding: FindingId,
    /// Its port.
    pub port: Port,
    /// Close it, or why not.
    pub verdict: Verdict,
}

/// The decision itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The port shall be closed.
    Close,
    /// The port is protected; the reason.
    Refuse(String),
    /// The budget of new ports is used up for now; the reason.
    Hold(String),
}

/// Decides about each finding, in the order's order. Ports that are closed already cost no budget.
pub fn decide(order: &Order, ledger: &Ledger, policy: &Policy, now: Timestamp) -> Vec<Decision> {
    let allow = policy.permitted.by(order);
    let mut budget = Budget::new(ledger, policy, now);
    let mut taken = std::collections::BTreeSet::new();
    order
        .findings
        .iter()
        .map(|finding| {
            let port = finding.port();
            let verdict = match policy.protection(port) {
                Some(reason) => Verdict::Refuse(reason.to_string()),
                None if allow.contains(port) => {
                    Verdict::Refuse(format!("{port} is both a finding and allowed in the same order"))
                }
                None if ledger.allowed_locally.contains(port) => {
                    Verdict::Refuse(format!("{port} is allowed on this node, by `harden --allow` or its configuration"))
                }
                None if ledger.is_closed(port) || taken.contains(&port) => Verdict::Close,
                None => budget.take(),
            };
            if verdict == Verdict::Close {
                taken.insert(port);
            }
            Decision { finding: finding.id.clone(), port, verdict }
        })
        .collect()
}

/// Takes an order into the ledger: closes what was decided, and opens again what the order's
/// allowlist covers, as far as the policy permits, and an earlier order of the same scanner or its peers, or the
/// posture, had closed. What was closed by `harden`, or by another scanner, stays closed.
pub fn record(order: &Order, decisions: &[Decision], ledger: &mut Ledger, policy: &Policy, now: Timestamp) {
    // A clock that was ahead holds nobody back for longer than an hour.
    ledger.spent.iter_mut().for_each(|spent| *spent = now.min(*spent));
    ledger.spent.retain(|spent| now.duration_since(*spent) < BUDGET_PERIOD);
    for port in decisions.iter().filter(|decision| decision.verdict == Verdict::Close).map(|d| d.port) {
        if !ledger.is_closed(port) {
            ledger.spent.push(now);
        }
        ledger.close(Closure { port, origin: Origin::Order(order.scanner.clone()), since: now });
    }
    ledger.armed = true;
    // Their allowlist is this one by now.
    order.peers.iter().for_each(|peer| ledger.supersede(peer));
    let yields = |closure: &Closure| match &closure.origin {
        Origin::Order(scanner) => *scanner == order.scanner || order.peers.contains(scanner),
        Origin::Posture => true,
        Origin::Local => false,
    };
    let allow = policy.permitted.by(order);
    ledger.closures.retain(|closure| !yields(closure) || !allow.contains(closure.port));
}

/// Closes every port of `published` that is neither in `allow` nor protected; gives back why those of
/// the latter stay open.
pub fn close_published(
    published: &PortSet,
    allow: &PortSet,
    origin: &Origin,
    policy: &Policy,
    ledger: &mut Ledger,
    now: Timestamp,
) -> Vec<String> {
    let mut refused = Vec::new();
    for port in published.iter().filter(|port| !allow.contains(*port)) {
        match policy.protection(port) {
            Some(reason) => refused.push(reason.to_string()),
            None => ledger.close(Closure { port, origin: origin.clone(), since: now }),
        }
    }
    refused
}

const BUDGET_PERIOD: SignedDuration = SignedDuration::from_hours(1);

struct Budget {
    left: usize,
    limit: usize,
}

impl Budget {
    fn new(ledger: &Ledger, policy: &Policy, now: Timestamp) -> Self {
        let recent = ledger.spent.iter().filter(|spent| now.duration_since(**spent) < BUDGET_PERIOD).count();
        Self { left: policy.max_new_per_hour.saturating_sub(recent), limit: policy.max_new_per_hour }
    }

    fn take(&mut self) -> Verdict {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Verdict::Close
            }
            None => Verdict::Hold(format!(
                "more than {} new ports in an hour: held until the budget allows it (max_new_per_hour)",
                self.limit
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Answered;
    use crate::ledger::Permitted;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn order(ports: &[&str], allow: &str) -> Order {
        let address = "198.51.100.11";
        let node = "n1".parse().unwrap();
        let findings: Vec<_> = ports
            .iter()
            .map(|port| {
                let port: Port = port.parse().unwrap();
                let id = FindingId::of(&node, address.parse().unwrap(), port);
                serde_json::json!({"id": id, "address": address, "protocol": port.protocol, "port": port.number, "evidence": "syn-ack"})
            })
            .collect();
        let allow: Vec<&str> = allow.split_whitespace().collect();
        serde_json::from_value(serde_json::json!({
            "schema": Order::SCHEMA, "scanner": "s1", "epoch": 1, "sequence": 1, "scan": "x", "node": "n1",
            "expires_at": "2026-11-23T10:00:00Z", "findings": findings, "allow": allow,
        }))
        .unwrap()
    }

    fn policy(protected: &str, max_new_per_hour: usize) -> Policy {
        let ports: PortSet = protected.parse().unwrap();
        let protected = vec![Protection { ports, reason: "the local list".into() }];
        Policy { protected, max_new_per_hour, permitted: Permitted::All }
    }

    #[test]
    fn protected_ports_are_refused_and_the_rest_closed() {
        let decisions =
            decide(&order(&["22/tcp", "8080/tcp", "22/udp"], ""), &Ledger::default(), &policy("22/tcp", 20), NOW);
        assert_eq!(decisions[0].verdict, Verdict::Refuse("22/tcp is protected: the local list".into()));
        assert_eq!(decisions[1].verdict, Verdict::Close);
        assert_eq!(decisions[2].verdict, Verdict::Close);
    }

    #[test]
    fn the_budget_holds_new_ports_only() {
        let policy = policy("22/tcp", 2);
        let mut ledger = Ledger::default();
        let first = order(&["1/tcp", "2/tcp", "3/tcp"], "");
        let decisions = decide(&first, &ledger, &policy, NOW);
        assert!(matches!(decisions[2].verdict, Verdict::Hold(_)));
        record(&first, &decisions, &mut ledger, &policy, NOW);
        let again = decide(&first, &ledger, &policy, NOW);
        assert_eq!(again[0].verdict, Verdict::Close, "closed already");
        assert!(matches!(again[2].verdict, Verdict::Hold(_)));
        let later = NOW + SignedDuration::from_hours(1);
        let last = decide(&first, &ledger, &policy, later);
        assert_eq!(last[2].verdict, Verdict::Close);
        record(&first, &last, &mut ledger, &policy, later);
        assert_eq!(ledger.spent, [later], "what no longer counts is not kept");
    }

    #[test]
    fn an_order_that_names_a_port_again_does_not_make_it_anybody_elses() {
        let policy = policy("22/tcp", 20);
        let mut ledger = Ledger::default();
        for (ports, allow, wanted) in [("8080/tcp", "", "8080/tcp"), ("8080/tcp", "", "8080/tcp"), ("", "8080/tcp", "")]
        {
            let order = order(&ports.split_whitespace().collect::<Vec<_>>(), allow);
            let decisions = decide(&order, &ledger, &policy, NOW);
            record(&order, &decisions, &mut ledger, &policy, NOW);
            assert_eq!(ledger.closed().to_string(), wanted);
        }
    }

    #[test]
    fn a_clock_that_was_ahead_costs_an_hour_at_most() {
        let policy = policy("22/tcp", 1);
        let mut ledger = Ledger::default();
        let take = |port: &str, ledger: &mut Ledger, hours| {
            let (order, now) = (order(&[port], ""), NOW + SignedDuration::from_hours(hours));
            let decisions = decide(&order, ledger, &policy, now);
            record(&order, &decisions, ledger, &policy, now);
            decisions[0].verdict == Verdict::Close
        };
        assert!(take("1/tcp", &mut ledger, 24));
        assert!(!take("2/tcp", &mut ledger, 0), "the clock was put right");
        assert!(take("2/tcp", &mut ledger, 1));
    }

    #[test]
    fn closing_opening_and_closing_again_is_not_free() {
        let policy = policy("22/tcp", 2);
        let mut ledger = Ledger::default();
        for (ports, allow) in [(["1/tcp"].as_slice(), ""), (&[], "1/tcp"), (&["1/tcp"], ""), (&[], "1/tcp")] {
            let order = order(ports, allow);
            let decisions = decide(&order, &ledger, &policy, NOW);
            record(&order, &decisions, &mut ledger, &policy, NOW);
        }
        assert!(matches!(decide(&order(&["1/tcp"], ""), &ledger, &policy, NOW)[0].verdict, Verdict::Hold(_)));
    }

    #[test]
    fn what_is_allowed_is_not_closed() {
        let policy = policy("22/tcp", 20);
        let both = order(&["8080/tcp"], "8080/tcp");
        assert!(matches!(decide(&both, &Ledger::default(), &policy, NOW)[0].verdict, Verdict::Refuse(_)));
        let mut ledger = Ledger::default();
        ledger.allowed_locally = "8080/tcp".parse().unwrap();
        assert!(matches!(decide(&order(&["8080/tcp"], ""), &ledger, &policy, NOW)[0].verdict, Verdict::Refuse(_)));
    }

    #[test]
    fn one_port_on_two_addresses_costs_once() {
        let mut twice = order(&["8080/tcp"], "");
        let mut second = twice.findings[0].clone();
        second.id = "0123456789abcdef".parse().unwrap();
        second.address = "2001:db8::1".parse().unwrap();
        twice.findings.push(second);
        let decisions = decide(&twice, &Ledger::default(), &policy("22/tcp", 1), NOW);
        assert!(decisions.iter().all(|decision| decision.verdict == Verdict::Close));
    }

    #[test]
    fn an_order_without_a_port_opens_nothing_and_its_allowlist_opens_only_what_orders_closed() {
        let mut ledger = Ledger::default();
        let take = |order: Order, ledger: &mut Ledger| {
            let policy = policy("22/tcp", 20);
            let decisions = decide(&order, ledger, &policy, NOW);
            record(&order, &decisions, ledger, &policy, NOW);
        };
        take(order(&["8080/tcp"], ""), &mut ledger);
        ledger.close(Closure { port: "9000/tcp".parse().unwrap(), origin: Origin::Local, since: NOW });
        take(order(&[], ""), &mut ledger);
        assert_eq!(ledger.closed().to_string(), "8080/tcp,9000/tcp");
        let other = Order { scanner: "s2".parse().unwrap(), ..order(&[], "8080/tcp") };
        take(other, &mut ledger);
        assert_eq!(ledger.closed().to_string(), "8080/tcp,9000/tcp", "another scanner's allowlist");
        ledger.orders.insert("s1".parse().unwrap(), Answered::begun(&order(&[], "80/tcp")));
        let peer = Order {
            scanner: "s2".parse().unwrap(),
            peers: vec!["s1".parse().unwrap()],
            ..order(&[], "8080/tcp 9000/tcp")
        };
        let mut shared = ledger.clone();
        take(peer, &mut shared);
        assert_eq!(shared.closed().to_string(), "9000/tcp", "a scanner that shares the node");
        assert!(shared.named(&Permitted::All).is_empty(), "what the other allowed before counts no more");
        take(order(&[], "8080/tcp 9000/tcp"), &mut ledger);
        assert_eq!(ledger.closed().to_string(), "9000/tcp");
        ledger.close(Closure { port: "9001/tcp".parse().unwrap(), origin: Origin::Posture, since: NOW });
        take(order(&[], "9000/tcp 9001/tcp"), &mut ledger);
        assert_eq!(ledger.closed().to_string(), "9000/tcp", "the posture yields to an allowlist");
    }

    #[test]
    fn an_allowlist_opens_and_spares_only_what_is_permitted() {
        let ports: PortSet = "8080/tcp".parse().unwrap();
        let policy = Policy { permitted: Permitted::Only(ports), ..policy("22/tcp", 20) };
        let mut ledger = Ledger::default();
        for port in ["8080/tcp", "9000/tcp"] {
            let origin = Origin::Order("s1".parse().unwrap());
            ledger.close(Closure { port: port.parse().unwrap(), origin, since: NOW });
        }
        let order = order(&["9001/tcp"], "8080/tcp 9000/tcp 9001/tcp");
        let decisions = decide(&order, &ledger, &policy, NOW);
        assert_eq!(decisions[0].verdict, Verdict::Close, "a word that opens nothing keeps nothing open");
        record(&order, &decisions, &mut ledger, &policy, NOW);
        assert_eq!(ledger.closed().to_string(), "9000-9001/tcp");
    }

    #[test]
    fn what_is_published_is_closed_but_what_is_allowed_or_protected() {
        let mut ledger = Ledger::default();
        let (published, allow) = ("22,80,8080/tcp,5514/udp".parse().unwrap(), "80/tcp".parse().unwrap());
        let refused = close_published(&published, &allow, &Origin::Posture, &policy("22/tcp", 0), &mut ledger, NOW);
        assert_eq!(refused, ["22/tcp is protected: the local list"]);
        assert_eq!(ledger.closed().to_string(), "8080/tcp,5514/udp");
    }
}
