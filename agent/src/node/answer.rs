//! How the node answers an order.

use std::time::Instant;

use deadlight_shared::hint;
use deadlight_shared::wire::{Cause, Mode, Order, OrderMark, Outcome, OutcomeStatus, Report};
use jiff::Timestamp;

use super::{Node, NodeError};
use crate::explain::{self, Question};
use crate::firewall::{Desired, Inspection};
use crate::ledger::{Answered, Ledger};
use crate::plan::{self, Decision, Verdict};
use crate::reconcile::Reconciled;

impl Node {
    /// Carries out `order`, or in observe mode says what would be done. An order that was answered
    /// before, and an older one, gets the stored report and changes nothing.
    ///
    /// The ledger is on disk before the kernel is touched; the kernel is read back before a port
    /// is called enforced; only then Docker is asked why it was open.
    pub async fn answer(&self, order: &Order) -> Result<Report, NodeError> {
        let started = Instant::now();
        let now = Timestamp::now();
        let mut state = self.state.lock().await;
        if state.subnets.is_none() {
            self.hear_docker(&mut state).await;
        }
        let lock = self.lock()?;
        let mut ledger = self.load(&state)?;
        if let Some(stored) = replayed(order, &ledger)? {
            return Ok(stored);
        }
        let policy = self.policy()?;
        let decisions = plan::decide(order, &ledger, &policy, now);
        if self.config.mode == Mode::Enforce {
            plan::record(order, &decisions, &mut ledger, now);
        }
        let mark = OrderMark { epoch: order.epoch, sequence: order.sequence };
        ledger.orders.insert(order.scanner.clone(), Answered { mark, report: None });
        let unsaved = self.save(&ledger, &mut state);
        let enforced = match self.config.mode {
            Mode::Enforce => Some(self.enforce(&ledger, &state)),
            Mode::Observe => None,
        };
        tracing::info!(
            sequence = order.sequence,
            findings = order.findings.len(),
            in_force = matches!(enforced, Some(Ok(_))),
            elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "order carried out and read back"
        );
        drop(lock);

        let facts = self.gather(&mut state).await;
        let desired = self.desired(&ledger, &state);
        let inspection = self.last_look(enforced.as_ref(), &desired);
        let outcomes = order
            .findings
            .iter()
            .zip(decisions)
            .map(|(finding, decision)| {
                let question = Question { port: decision.port, address: Some(finding.address) };
                let cause = explain::cause(question, &facts, &inspection.docker);
                self.outcome(decision, cause, enforced.as_ref(), &inspection, &desired)
            })
            .collect();
        let warnings = unsaved.iter().map(|error| format!("state not persisted: {}", chain(error))).collect();
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
        ledger.orders.insert(order.scanner.clone(), Answered { mark, report: Some(report.clone()) });
        self.save(&ledger, &mut state);
        Ok(report)
    }

    fn last_look(&self, enforced: Option<&Result<Reconciled, NodeError>>, desired: &Desired) -> Inspection {
        match enforced {
            Some(Ok(_)) | None => {}
            Some(Err(error)) => tracing::error!("{}", chain(error)),
        }
        tokio::task::block_in_place(|| self.firewall.inspect(desired)).unwrap_or_default()
    }

    fn outcome(
        &self,
        decision: Decision,
        cause: Cause,
        enforced: Option<&Result<Reconciled, NodeError>>,
        inspection: &Inspection,
        desired: &Desired,
    ) -> Outcome {
        let (status, reason) = match (decision.verdict, enforced) {
            (Verdict::Refuse(reason), _) => (OutcomeStatus::Refused, reason),
            (Verdict::Hold(reason), _) => (OutcomeStatus::Pending, reason),
            (Verdict::Close, None) => {
                (OutcomeStatus::Observed, "observe mode: nothing was changed; these rules would be written".to_owned())
            }
            (Verdict::Close, Some(Ok(_))) => (OutcomeStatus::Enforced, "closed and read back".to_owned()),
            (Verdict::Close, Some(Err(error))) => failure(error),
        };
        let rules = match status {
            OutcomeStatus::Enforced | OutcomeStatus::Observed => self.firewall.lines_for(decision.port, desired),
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
        NodeError::Ledger(_) | NodeError::Listeners(_) | NodeError::Stale => (OutcomeStatus::Failed, chain(error)),
    }
}

/// The error with its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    hint::render(error).trim_start_matches("error: ").to_owned()
}
