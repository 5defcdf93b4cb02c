//! What crosses the wire, read into values.

use std::sync::OnceLock;

use deadlight_agent::ledger::{Closure, Ledger, Origin};
use deadlight_agent::plan::{Policy, Verdict, decide, record};
use deadlight_scanner::cli::fuzzing;
use deadlight_scanner::probe::Answer;
use deadlight_shared::enrol::EnrolLine;
use deadlight_shared::trust::SignedTrust;
use deadlight_shared::wire::{Explanation, Order, Report, Status};
use deadlight_shared::{Identity, OperatorKey, OperatorSecret, Port, SignedPermit};
use jiff::Timestamp;

use crate::text::{assert_line, assert_lines};
use crate::world;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// An order: it shuts no protected port, keeps to the budget, and opens only what its own scanner's orders closed.
pub fn order(bytes: &[u8]) {
    let Ok(order) = serde_json::from_slice::<Order>(bytes) else { return };
    assert_eq!(serde_json::from_slice::<Order>(&serde_json::to_vec(&order).unwrap()).unwrap(), order);
    if let Err(error) = order.check() {
        return assert_line(&error.to_string());
    }
    let policy = Policy { max_new_per_hour: 3, ..world::policy() };
    let mut ledger = Ledger::default();
    let closure = |port: &str, origin| Closure { port: port.parse().unwrap(), origin, since: NOW };
    ledger.close(closure("9000/tcp", Origin::Local));
    ledger.close(closure("9001/tcp", Origin::Order("office-b".parse().unwrap())));
    ledger.close(closure("9002/tcp", Origin::Order(order.scanner.clone())));
    ledger.allowed_locally = "8443/tcp".parse().unwrap();
    ledger.spent.push(NOW);
    let before = ledger.clone();

    let decisions = decide(&order, &ledger, &policy, NOW);
    assert_eq!(decisions.len(), order.findings.len());
    let shut = |port: Port| decisions.iter().any(|it| it.port == port && it.verdict == Verdict::Close);
    for port in decisions.iter().filter(|it| it.verdict == Verdict::Close).map(|it| it.port) {
        assert!(policy.protection(port).is_none(), "{port} is protected");
        assert!(!order.allow.contains(port) && !ledger.allowed_locally.contains(port), "{port} is allowed");
    }
    record(&order, &decisions, &mut ledger, &policy, NOW);
    let new: Vec<Port> = ledger.closed().iter().filter(|port| !before.is_closed(*port)).collect();
    assert!(new.iter().all(|port| shut(*port)) && new.len() <= 2, "{new:?}");
    for standing in before.closures.iter().filter(|it| !ledger.is_closed(it.port)) {
        assert!(order.allow.contains(standing.port), "{standing:?}");
        assert_eq!(standing.origin, Origin::Order(order.scanner.clone()));
    }
    let again = decide(&order, &ledger, &policy, NOW);
    assert!(again.iter().all(|it| !shut(it.port) || it.verdict == Verdict::Close), "{again:?}");
}

/// A report, a state of health or an explanation: each reads as it was written, and people see no more than text.
pub fn report(bytes: &[u8]) {
    if let Ok(report) = serde_json::from_slice::<Report>(bytes) {
        assert_eq!(serde_json::from_slice::<Report>(&serde_json::to_vec(&report).unwrap()).unwrap(), report);
        report.outcomes.iter().for_each(|outcome| assert_line(&outcome.cause.to_string()));
    }
    if let Ok(status) = serde_json::from_slice::<Status>(bytes) {
        assert_eq!(serde_json::from_slice::<Status>(&serde_json::to_vec(&status).unwrap()).unwrap(), status);
    }
    if let Ok(explanation) = serde_json::from_slice::<Explanation>(bytes) {
        let written = serde_json::to_vec(&explanation).unwrap();
        assert_eq!(serde_json::from_slice::<Explanation>(&written).unwrap(), explanation);
        assert_lines(&deadlight_shared::explained::text(&explanation));
    }
}

/// A captured packet: what is read belongs to one family.
pub fn answer(bytes: &[u8]) {
    if let Some(answer) = Answer::read(bytes) {
        assert_eq!(answer.ends.source.is_ipv4(), answer.ends.target.is_ipv4());
    }
}

/// An enrolment line, a header with a trust document, or a signed permit: a line reads as it was written, nobody's word is
/// trusted, and what is said of it shows no secret.
pub fn enrol_line(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match text.parse::<EnrolLine>() {
        Err(error) => assert_line(&error.to_string()),
        Ok(line) => assert_eq!(line.to_string().parse::<EnrolLine>().unwrap().to_string(), line.to_string()),
    }
    if let Ok(trust) = SignedTrust::from_header(text) {
        assert!(trust.open(&[]).is_err(), "signed by nobody");
    }
    if let Ok(permit) = serde_json::from_str::<SignedPermit>(text) {
        let operator = OPERATOR.get_or_init(|| OperatorSecret::generate().unwrap().public().unwrap());
        assert!(permit.open_for(&"n1".parse().unwrap(), operator).is_err(), "signed by another");
    }
}

static OPERATOR: OnceLock<OperatorKey> = OnceLock::new();

/// A certificate: whom it speaks for, and what is told of a stranger's.
pub fn certificate(bytes: &[u8]) {
    match Identity::of_certificate(&bytes.into()) {
        Err(error) => assert_line(&error.to_string()),
        Ok(identity) => {
            let text = identity.to_string();
            assert_line(&text);
            assert_eq!(text.parse::<Identity>().unwrap(), identity);
        }
    }
    fuzzing::described(bytes).iter().for_each(|line| assert_line(line));
}
