//! The steps of one round, in their order. Whoever takes them sweeps, sends and looks again in between.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use deadlight_shared::Name;
use deadlight_shared::wire::{Order, Report};
use jiff::Timestamp;
use jiff::civil::Date;

use super::{Ending, News, ending, order_for, rescans, take_proofs, take_report};
use crate::assess::{Assessment, Expectation, assess};
use crate::config::Config;
use crate::permits::Permits;
use crate::store::Store;
use crate::sweep::{Checked, Rescan, Sweep};

/// A round after its sweep.
#[derive(Debug)]
pub struct Turn {
    today: Date,
    expectations: Vec<Expectation>,
    sweep: Sweep,
    assessment: Assessment,
    /// Nodes whose agents have taken their orders.
    ordered: BTreeSet<Name>,
}

impl Turn {
    /// Judges what `sweep` saw. Everything that is open is told and then kept.
    pub fn begin(
        config: &Config,
        today: Date,
        sweep: Sweep,
        store: &mut Store,
        mut tell: impl FnMut(News<'_>),
    ) -> Self {
        let expectations = config.expectations(today);
        let assessment = assess(&sweep, &expectations, store.findings().to_vec());
        tell(News::Swept { sweep: &sweep, assessment: &assessment });
        store.keep(assessment.findings.clone());
        Self { today, expectations, sweep, assessment, ordered: BTreeSet::new() }
    }

    /// One order for each node with an agent, with what the operator has signed for it.
    pub fn orders(&self, config: &Config, permits: &Permits, store: &mut Store, now: Timestamp) -> Vec<Order> {
        let with_agent = config.nodes.iter().filter(|node| node.agent.is_some());
        let order = |node: &crate::config::Node| {
            let allow = config.allowlist.ports_of(node.subject(), self.today);
            let findings = &self.assessment.findings;
            let order = order_for(&config.vantage, node, store.next_mark(), &self.sweep, findings, allow, now);
            Order { permit: permits.of(&node.name).cloned(), ..order }
        };
        with_agent.map(order).collect()
    }

    /// Takes what came of the orders.
    pub fn answered<E: Error + 'static>(
        &mut self,
        config: &Config,
        mut answers: BTreeMap<Name, Result<Report, E>>,
        store: &mut Store,
        mut tell: impl FnMut(News<'_>),
    ) {
        for node in &config.nodes {
            match answers.remove(&node.name) {
                None => {}
                Some(Err(error)) => tell(News::Unanswered { node, error: &error }),
                Some(Ok(report)) => {
                    tell(News::Answered { report: &report, before: &self.assessment });
                    take_report(&mut self.assessment, &report);
                    self.ordered.insert(node.name.clone());
                }
            }
        }
        store.keep(self.assessment.findings.clone());
    }

    /// What to look at again.
    pub fn looks(&self, config: &Config, mut tell: impl FnMut(News<'_>)) -> Vec<Rescan> {
        let rescans = rescans(config, &self.expectations, &self.assessment, &self.ordered);
        tell(News::Looking(&rescans));
        rescans
    }

    /// Takes what the second look showed.
    pub fn looked(&mut self, checked: &[Checked], store: &mut Store, now: Timestamp, mut tell: impl FnMut(News<'_>)) {
        for contradiction in take_proofs(&mut self.assessment, checked, now) {
            tell(News::Contradicted(&contradiction));
        }
        store.keep(self.assessment.findings.clone());
    }

    /// Sums up.
    pub fn end(self, config: &Config, mut tell: impl FnMut(News<'_>)) -> Ending {
        let ending = ending(config, &self.sweep, &self.assessment);
        tell(News::Ended(&ending));
        ending
    }
}
