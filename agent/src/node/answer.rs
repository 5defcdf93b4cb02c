//! How the node answers an order.

use std::net::IpAddr;
use std::time::Instant;

use deadlight_shared::PortSet;
use deadlight_shared::wire::{Mode, Order, OrderMark, Outcome, OutcomeStatus, Report, ReportedFinding};
use tokio::task::block_in_place;

use super::act::Sessions;
use super::{Node, NodeError, chain};
use crate::explain::{self, Question};
use crate::firewall::Desired;
use crate::ledger::{Answered, Ledger, PermitRefusal};
use crate::plan::{self, Verdict};

impl Node {
    /// Carries out `order`, or in observe mode says what would be done. An order that was answered
    /// before, and an older one, gets the stored report and changes nothing.
    ///
    /// The ledger is on disk before the kernel is touched; the kernel is read back before a port
    /// is called enforced; only then Docker is asked why it was open. What another program is in the way of is
    /// pending, and [`Node::undone`] says so.
    pub async fn answer(&self, order: &Order, scanner: IpAddr) -> Result<Report, NodeError> {
        let started = Instant::now();
        let now = self.host.now();
        let mut state = match self.config.mode {
            Mode::Enforce => self.state.lock().await,
            Mode::Observe => self.state_after_docker().await,
        };
        state.orders.insert(order.scanner.clone(), now);
        let lock = self.lock()?;
        let mut ledger = self.load(&state)?;
        if let Some(stored) = replayed(order, &ledger)? {
            return Ok(stored);
        }
        let refused = match self.config.operator() {
            Ok(Some(operator)) => ledger.take_permit(order, &operator).err(),
            Ok(None) | Err(_) => None,
        };
        let listeners = self.listeners(&ledger)?;
        let policy = self.policy(&listeners, &ledger);
        let decisions = plan::decide(order, &ledger, &policy, now);
        if self.config.mode == Mode::Enforce {
            plan::record(order, &decisions, &mut ledger, &policy, now);
        }
        let begun = Answered::begun(order);
        let mark = begun.mark;
        ledger.orders.insert(order.scanner.clone(), begun);
        let unsaved = self.save(&ledger, &mut state);
        // Whatever comes of it, the next look reads the tables itself.
        state.well = None;
        let (inspection, enforced) = match self.config.mode {
            Mode::Observe => (None, None),
            Mode::Enforce => match self.enforce(&ledger, &listeners, Sessions::Sever) {
                Ok(reconciled) => (Some(reconciled.inspection), Some(Ok(()))),
                Err(error) => (None, Some(Err(error))),
            },
        };
        if let Some(Err(NodeError::Firewall(error))) = &enforced
            && error.is_temporary()
        {
            self.undone.notify_one();
        }
        tracing::info!(
            sequence = order.sequence,
            findings = order.findings.len(),
            in_force = matches!(enforced, Some(Ok(()))),
            elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "order carried out and read back"
        );
        drop(lock);

        let facts = self.gather(&mut state, order.findings.iter().map(ReportedFinding::port).collect()).await;
        let desired = self.desired(&ledger, &policy);
        let look = || block_in_place(|| self.firewall.inspect(&desired)).unwrap_or_default();
        let inspection = inspection.unwrap_or_else(look);
        let own = self.host.addresses();
        let outcomes = order
            .findings
            .iter()
            .zip(decisions)
            .map(|(finding, decision)| {
                let question = Question { port: decision.port, address: Some(finding.address), from: Some(scanner) };
                let cause = explain::cause(question, &facts, &inspection.docker);
                let (status, reason) = match (decision.verdict, inside(finding.address, &own, &desired)) {
                    (Verdict::Close, Some(reason)) => (OutcomeStatus::Failed, reason),
                    (verdict, _) => judge(verdict, enforced.as_ref()),
                };
                let rules = match status {
                    OutcomeStatus::Enforced | OutcomeStatus::Observed => {
                        self.firewall.lines_for(decision.port, &desired, &inspection.docker)
                    }
                    OutcomeStatus::Refused | OutcomeStatus::Pending | OutcomeStatus::Failed => Vec::new(),
                };
                Outcome {
                    finding: decision.finding,
                    protocol: decision.port.protocol,
                    port: decision.port.number,
                    status,
                    reason,
                    cause,
                    rules,
                    dropped: inspection.dropped.get(&decision.port).copied().unwrap_or(0),
                }
            })
            .collect();
        let unsaved = unsaved.iter().map(|error| format!("state not persisted: {}", chain(error)));
        let unsigned = unsigned(&policy.permitted.denied(order), refused.as_ref());
        let warnings = unsaved.chain(unsigned).chain(state.drift.drain(..)).collect();
        let report = Report {
            schema: Report::SCHEMA.to_owned(),
            node: self.name.clone(),
            mode: self.config.mode,
            order: mark,
            outcomes,
            warnings,
        };
        let _lock = self.lock()?;
        ledger = self.load(&state)?;
        if let Some(answered) = ledger.orders.get_mut(&order.scanner).filter(|answered| answered.mark == mark) {
            answered.report = Some(report.clone());
        }
        self.save(&ledger, &mut state);
        Ok(report)
    }
}

/// Why a rule on the outside interfaces does not cover `address`: it sits on another one of `own`.
/// Addresses that the node does not hold (behind NAT) and those on loopback come in by any.
fn inside(address: IpAddr, own: &[(String, IpAddr)], desired: &Desired) -> Option<String> {
    let (interface, _) = own.iter().find(|(_, own)| *own == address)?;
    let covered = interface == "lo" || desired.outside.contains(interface);
    (!covered).then(|| format!("{address} is on {interface}, which the guard does not cover; add it to `outside`"))
}

fn judge(verdict: Verdict, enforced: Option<&Result<(), NodeError>>) -> (OutcomeStatus, String) {
    match (verdict, enforced) {
        (Verdict::Refuse(reason), _) => (OutcomeStatus::Refused, reason),
        (Verdict::Hold(reason), _) => (OutcomeStatus::Pending, reason),
        (Verdict::Close, None) => {
            (OutcomeStatus::Observed, "observe mode: nothing was changed; these rules would be written".to_owned())
        }
        (Verdict::Close, Some(Ok(()))) => (OutcomeStatus::Enforced, "closed and read back".to_owned()),
        (Verdict::Close, Some(Err(error))) => failure(error),
    }
}

fn replayed(order: &Order, ledger: &Ledger) -> Result<Option<Report>, NodeError> {
    let mark = OrderMark { epoch: order.epoch, sequence: order.sequence };
    match ledger.orders.get(&order.scanner) {
        Some(answered) if mark < answered.mark => answered.report.clone().map(Some).ok_or(NodeError::Stale),
        Some(answered) if mark == answered.mark => Ok(answered.report.clone()),
        _ => Ok(None),
    }
}

fn failure(error: &NodeError) -> (OutcomeStatus, String) {
    match error {
        NodeError::Firewall(error) => {
            let status = if error.is_temporary() { OutcomeStatus::Pending } else { OutcomeStatus::Failed };
            (status, format!("{}; {}", chain(error), error.remedy()))
        }
        NodeError::Ledger(_) | NodeError::Listeners(_) | NodeError::Routes(_) | NodeError::Stale => {
            (OutcomeStatus::Failed, chain(error))
        }
    }
}

/// What the scanner's people must know of the operator's signature, also on this node.
fn unsigned(denied: &PortSet, refused: Option<&PermitRefusal>) -> Vec<String> {
    let denied = (!denied.is_empty()).then(|| {
        format!("not signed by the operator, so no allowlist opens it: {denied}; `deadlight-scanner allowlist sign`")
    });
    let warnings: Vec<String> = refused.map(PermitRefusal::to_string).into_iter().chain(denied).collect();
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use jiff::{SignedDuration, Timestamp};
    use tokio::time::timeout;

    use crate::config::Config;
    use crate::firewall::fake::Fake;

    fn order(sequence: u64) -> Order {
        let finding = serde_json::json!({
            "id": "0000000000000006", "address": "198.51.100.11", "protocol": "tcp", "port": 6, "evidence": "syn-ack",
        });
        serde_json::from_value(serde_json::json!({
            "schema": Order::SCHEMA, "scanner": "office-a", "epoch": 1, "sequence": sequence, "scan": "x", "node": "n1",
            "expires_at": Timestamp::now() + SignedDuration::from_mins(10), "findings": [finding], "allow": [],
        }))
        .unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pending_order_is_told_once_and_a_look_that_fails_is_not() {
        let (directory, firewall) = (tempfile::tempdir().unwrap(), Fake::default());
        let config = Config {
            mode: Mode::Enforce,
            state_dir: directory.path().join("state"),
            outside: vec!["eth0".to_owned()],
            docker_socket: directory.path().join("docker.sock"),
            ..Config::default()
        };
        let node = Node::new("n1".parse().unwrap(), config, Box::new(firewall.clone()));
        let told = async || timeout(Duration::from_millis(10), node.undone()).await.is_ok();
        let status = async |sequence| {
            let report = node.answer(&order(sequence), [198, 51, 100, 1].into()).await.unwrap();
            report.outcomes[0].status
        };

        firewall.hold_lock(true);
        assert_eq!(status(1).await, OutcomeStatus::Pending);
        assert_eq!((told().await, told().await), (true, false));
        assert_eq!((status(1).await, told().await), (OutcomeStatus::Pending, false), "a replay changes nothing");
        node.reconcile().await.unwrap_err();
        assert!(!told().await, "whoever looks knows by itself that it failed");

        firewall.hold_lock(false);
        assert!(!node.reconcile().await.unwrap().is_empty());
        assert_eq!((status(2).await, told().await), (OutcomeStatus::Enforced, false));
    }
}
