//! The steps of one round, in their order. Whoever takes them sweeps, sends and looks again in between.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use deadlight_shared::hint::causes;
use deadlight_shared::wire::{Cause, Order, Outcome, Report};
use deadlight_shared::{Finding, FindingId, FindingStatus, Name};
use jiff::Timestamp;
use jiff::civil::Date;

use super::{Contradiction, News, Scope, ending, order_for, rescans, take_proofs, take_report};
use crate::assess::{Assessment, Expectation, assess};
use crate::config::Config;
use crate::permits::Permits;
use crate::prove::Verdict;
use crate::store::{Contact, Store, Swept, Target, Warned, Why};
use crate::sweep::{Checked, Rescan, Sweep};

/// Characters of an agent's sentence that are remembered, and how many rules and warnings.
const REASON: usize = 300;
const RULES: usize = 8;
const WARNINGS: usize = 8;

/// A round after its sweep.
#[derive(Debug)]
pub struct Turn {
    today: Date,
    scope: Scope,
    expectations: Vec<Expectation>,
    sweep: Sweep,
    assessment: Assessment,
    /// Nodes whose agents have taken their orders.
    ordered: BTreeSet<Name>,
}

impl Turn {
    /// Judges what `sweep` saw, which looked at `scope`. Everything that is open is told and then kept.
    pub fn begin(
        config: &Config,
        today: Date,
        scope: Scope,
        mut sweep: Sweep,
        store: &mut Store,
        mut tell: impl FnMut(News<'_>),
    ) -> Self {
        let expectations = config.expectations(today);
        if scope == Scope::Quick {
            // It has asked too few ports to find them out itself.
            for (address, open) in store.state().liars() {
                sweep.liars.entry(address).or_insert(open);
            }
        }
        let mut assessment = assess(&sweep, &expectations, store.findings().to_vec());
        let targets = config.targets();
        let is_listed = |finding: &Finding| targets.contains(&(&finding.node, finding.address));
        // Nobody looks at them any more, so nothing will ever be said of them.
        for finding in &mut assessment.findings {
            if !is_listed(finding) && !finding.status.is_over() {
                finding.status = FindingStatus::Accepted;
            }
        }
        tell(News::Swept { sweep: &sweep, assessment: &assessment, before: store.findings() });
        store.see(&sweep, scope);
        let evidence: BTreeMap<Target, String> =
            sweep.observations.iter().map(|seen| (Target::of(seen), seen.evidence.to_string())).collect();
        store.keep(&assessment.findings, sweep.finished, |finding| match finding.status {
            FindingStatus::Accepted if !is_listed(finding) => Some(Why::Unlisted),
            FindingStatus::Accepted => Some(Why::Allowlist),
            _ => Some(Why::Sweep { evidence: evidence.get(&target(finding)).cloned().unwrap_or_default() }),
        });
        Self { today, scope, expectations, sweep, assessment, ordered: BTreeSet::new() }
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
        now: Timestamp,
        mut tell: impl FnMut(News<'_>),
    ) {
        // An agent speaks for its own node.
        let mut outcomes: BTreeMap<(Name, FindingId), Outcome> = BTreeMap::new();
        for node in &config.nodes {
            match answers.remove(&node.name) {
                None => {}
                Some(Err(error)) => {
                    tell(News::Unanswered { node, error: &error });
                    let trouble = Some(causes(&error));
                    store
                        .contact(&node.name, Contact { asked: now, answered: None, mode: None, trouble, warned: None });
                }
                Some(Ok(report)) => {
                    tell(News::Answered { report: &report, before: &self.assessment });
                    take_report(&mut self.assessment, &report);
                    self.ordered.insert(node.name.clone());
                    let (answered, mode) = (Some(now), Some(report.mode));
                    let warned = warned(&report, now);
                    store.contact(&node.name, Contact { asked: now, answered, mode, trouble: None, warned });
                    let of_node = |outcome: Outcome| ((node.name.clone(), outcome.finding.clone()), brief(outcome));
                    outcomes.extend(report.outcomes.into_iter().map(of_node));
                }
            }
        }
        store.keep(&self.assessment.findings, now, |finding| {
            let outcome = outcomes.get(&(finding.node.clone(), finding.id.clone()))?;
            Some(Why::Agent(Box::new(outcome.clone())))
        });
    }

    /// What to look at again.
    pub fn looks(&self, config: &Config, mut tell: impl FnMut(News<'_>)) -> Vec<Rescan> {
        let rescans = rescans(config, &self.expectations, &self.assessment, &self.ordered);
        tell(News::Looking(&rescans));
        rescans
    }

    /// Takes what the second look showed.
    pub fn looked(&mut self, checked: &[Checked], store: &mut Store, now: Timestamp, mut tell: impl FnMut(News<'_>)) {
        let contradictions = take_proofs(&mut self.assessment, checked, now);
        for contradiction in &contradictions {
            tell(News::Contradicted(contradiction));
        }
        let contradicted: BTreeSet<Target> = contradictions
            .iter()
            .map(|Contradiction { address, port, .. }| Target { address: *address, port: *port })
            .collect();
        let verdicts: BTreeMap<Target, &Verdict> = checked
            .iter()
            .map(|checked| (Target { address: checked.address, port: checked.port }, &checked.verdict))
            .collect();
        store.keep(&self.assessment.findings, now, |finding| match verdicts.get(&target(finding))? {
            Verdict::Closed(evidence) => Some(Why::Proof { evidence: evidence.to_string() }),
            Verdict::StillOpen if contradicted.contains(&target(finding)) => Some(Why::Contradiction),
            Verdict::StillOpen => Some(Why::Rescan),
            Verdict::Unproven(_) => None,
        });
    }

    /// Sums up. Only full sweeps are remembered: a quick one says nothing of what it did not ask.
    pub fn end(self, config: &Config, store: &mut Store, now: Timestamp, mut tell: impl FnMut(News<'_>)) -> Swept {
        let ending = ending(config, &self.sweep, &self.assessment);
        tell(News::Ended(&ending));
        let Sweep { started, interrupted, tally, duration, .. } = self.sweep;
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let swept =
            Swept { started, finished: now, interrupted, milliseconds, scope: Some(config.scope()), tally, ending };
        if self.scope == Scope::Full {
            store.end(swept.clone());
        }
        swept
    }
}

/// What is remembered of an agent's words: they are somebody else's, and come again each round.
fn brief(outcome: Outcome) -> Outcome {
    let reason = short(&outcome.reason);
    let cause = Cause { evidence: Vec::new(), ..outcome.cause };
    let rules = outcome.rules.iter().take(RULES).map(|rule| short(rule)).collect();
    Outcome { reason, cause, rules, ..outcome }
}

fn warned(report: &Report, at: Timestamp) -> Option<Warned> {
    let said: Vec<String> = report.warnings.iter().take(WARNINGS).map(|warning| short(warning)).collect();
    (!said.is_empty()).then_some(Warned { at, said })
}

fn short(sentence: &str) -> String {
    sentence.chars().take(REASON).collect()
}

fn target(finding: &Finding) -> Target {
    Target { address: finding.address, port: finding.port() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Record, State};
    use deadlight_shared::wire::{CauseKind, Mode, OrderMark, OutcomeStatus};
    use deadlight_shared::{Evidence, Observation, PortState};

    const CONFIG: &str = r#"
        [vantage]
        id = "office-a"
        [[node]]
        name = "n1"
        addresses = ["198.51.100.11"]
        [[node]]
        name = "n2"
        addresses = ["198.51.100.12"]
    "#;
    const TODAY: Date = jiff::civil::date(2026, 11, 23);

    fn seen(node: &str, address: &str) -> Observation {
        Observation {
            node: node.parse().unwrap(),
            address: address.parse().unwrap(),
            port: "8080/tcp".parse().unwrap(),
            state: PortState::Open,
            evidence: Evidence::SynAck,
            attempts: 1,
            service: None,
        }
    }

    fn sweep() -> Sweep {
        Sweep {
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            observations: vec![seen("n1", "198.51.100.11"), seen("n2", "198.51.100.12")],
            unasked: Vec::new(),
            heard: BTreeSet::new(),
            liars: BTreeMap::new(),
            notes: Vec::new(),
            interrupted: false,
            settled: BTreeMap::new(),
            tally: Default::default(),
            duration: Default::default(),
        }
    }

    fn report(node: &str, findings: &[Finding]) -> Report {
        let outcome = |finding: &Finding| Outcome {
            finding: finding.id.clone(),
            protocol: finding.protocol,
            port: finding.port,
            status: OutcomeStatus::Observed,
            reason: format!("says {node}"),
            cause: Cause::new(CauseKind::Unknown),
            rules: vec!["x".repeat(1_000); 100],
            dropped: 0,
        };
        Report {
            schema: Report::SCHEMA.to_owned(),
            node: node.parse().unwrap(),
            mode: Mode::Observe,
            order: OrderMark { epoch: 1, sequence: 1 },
            outcomes: findings.iter().map(outcome).collect(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn an_agent_puts_no_word_into_the_story_of_another_node() {
        let config = Config::parse(CONFIG, "scanner.toml".as_ref(), TODAY).unwrap();
        let mut store = Store::new(State::default(), Timestamp::UNIX_EPOCH);
        let mut turn = Turn::begin(&config, TODAY, Scope::Full, sweep(), &mut store, |_| {});
        store.saved();
        // Each speaks of both.
        let findings = store.findings().to_vec();
        let answers =
            ["n1", "n2"].map(|node| (node.parse().unwrap(), Ok::<_, std::io::Error>(report(node, &findings))));
        turn.answered(&config, answers.into(), &mut store, Timestamp::UNIX_EPOCH, |_| {});
        let told: Vec<_> = store
            .unsaved()
            .iter()
            .filter_map(|record| match record {
                Record::Finding { finding, why: Some(Why::Agent(outcome)), .. } => {
                    Some(format!("{} {} {}", finding.node, outcome.reason, outcome.rules.concat().len()))
                }
                _ => None,
            })
            .collect();
        assert_eq!(told, ["n1 says n1 2400", "n2 says n2 2400"]);
    }
}
