//! What a round did, line by line, for a person who watches it.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::io::Write;

use anstyle::{AnsiColor, Style};
use deadlight_shared::text::printable;
use deadlight_shared::wire::{Outcome, OutcomeStatus, Report};
use deadlight_shared::{Finding, FindingStatus, Name, Observation, Port, PortSet, PortState};

use super::{counted, written};
use crate::assess::Assessment;
use crate::config::{Config, Node};
use crate::prove::Verdict;
use crate::round::{Contradiction, Ending, News, Scope};
use crate::sweep::{Checked, Rescan, Sweep};

const ALARM: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const DOUBT: Style = AnsiColor::Yellow.on_default().bold();
const PLAIN: Style = Style::new().bold();

/// Longest text of an agent that is shown.
const SHOWN: usize = 300;

/// Keeps silent about a reader that has gone away: the round goes on.
#[derive(Debug)]
pub(super) struct Story<W> {
    out: W,
    /// A quick round is told only where it has news: there is one each minute.
    is_told: bool,
}

impl<W: Write> Story<W> {
    pub(super) fn new(scope: Scope, out: W) -> Self {
        Self { out, is_told: scope == Scope::Full }
    }

    pub(super) fn tell(&mut self, config: &Config, news: &News<'_>) {
        self.is_told |= is_new(news);
        if !self.is_told {
            return;
        }
        match *news {
            News::Swept { sweep, assessment, .. } => self.sweep(config, sweep, assessment),
            News::Unanswered { node, error } => self.no_report(node, error),
            News::Answered { report, before } => self.report(report, before),
            News::Looking(rescans) => self.rescan(rescans),
            News::Contradicted(Contradiction { node, address, port }) => self.line(
                ALARM,
                "CONTRADICTION",
                format_args!("agent of {node} says {port} is closed, the network says open: it answered at {address}"),
            ),
            News::Looked { checked, dropped } => self.proofs(checked, dropped),
            News::Ended(ending) => self.ending(ending),
        }
    }

    pub(super) fn sweep(&mut self, config: &Config, sweep: &Sweep, assessment: &Assessment) {
        let (nodes, seconds) = (counted(config.nodes.len(), "node"), sweep.duration.as_secs_f64());
        let (vantage, tally, targets) = (&config.vantage, sweep.tally, sweep.tally.targets);
        self.line(PLAIN, "SWEEP", format_args!("{vantage}: {nodes}, {targets} targets in {seconds:.1} s: {tally}"));
        for unasked in &sweep.unasked {
            let reason = printable(&unasked.reason, SHOWN);
            self.line(
                DOUBT,
                "UNKNOWN",
                format_args!(
                    "{} {}, {}: {reason}",
                    unasked.node,
                    unasked.address,
                    counted(unasked.ports.len(), "port")
                ),
            );
        }
        for note in &sweep.notes {
            self.line(PLAIN, "NOTE", format_args!("{}", printable(note, SHOWN)));
        }
        for (address, open) in &sweep.liars {
            let said = counted(*open, "port");
            self.line(
                ALARM,
                "LIAR",
                format_args!(
                    "{address} answered on {said}: something before it answers everything; nothing is ordered"
                ),
            );
        }
        for seen in sweep.observations.iter().filter(|seen| seen.state == PortState::Unknown) {
            let Observation { node, address, port, evidence, .. } = seen;
            let evidence = printable(&evidence.to_string(), SHOWN);
            self.line(DOUBT, "UNKNOWN", format_args!("{node} {address} {port}: {evidence}"));
        }
        for finding in assessment.findings.iter().filter(|finding| assessment.exposed.contains(&finding.id)) {
            let Finding { node, address, first_seen, status, .. } = finding;
            let since = match *first_seen == sweep.started {
                true => "for the first time".to_owned(),
                false => format!("{status}, first seen {first_seen:.0}"),
            };
            let port = finding.port();
            let behind = match &finding.service {
                Some(service) => format!(" ({})", printable(service, SHOWN)),
                None => String::new(),
            };
            self.line(ALARM, "OPEN", format_args!("{node} {address} {port}{behind}: not on the allowlist, {since}"));
        }
        for missing in &assessment.missing {
            self.line(DOUBT, "MISSING", format_args!("{} {}: should be open and is not", missing.node, missing.port));
        }
    }

    pub(super) fn no_report(&mut self, node: &Node, error: &(dyn Error + 'static)) {
        let chain = deadlight_shared::hint::render(error);
        let reason = printable(chain.trim_start_matches("error: "), 2 * SHOWN);
        let way = node.agent.as_ref().map(|way| format!(" ({way})")).unwrap_or_default();
        self.line(ALARM, "AGENT", format_args!("{}{way}: no report, its findings stay open: {reason}", node.name));
    }

    /// The agent's answer to what is open now, or was not proven closed before.
    pub(super) fn report(&mut self, report: &Report, before: &Assessment) {
        let news = |outcome: &&Outcome| {
            let known = before.findings.iter().find(|finding| finding.id == outcome.finding);
            known.is_some_and(|finding| finding.status != FindingStatus::Resolved)
        };
        // One rule often serves several addresses.
        let mut shown = BTreeSet::new();
        for outcome in report.outcomes.iter().filter(news) {
            let address = before.findings.iter().find(|f| f.id == outcome.finding).map(|f| f.address);
            let address = address.map(|address| format!("{address} ")).unwrap_or_default();
            let (node, port, status) = (&report.node, outcome.port(), outcome.status.as_str());
            self.line(PLAIN, "CAUSE", format_args!("{node} {address}{port}: {}", outcome.cause));
            let reason = printable(&outcome.reason, SHOWN);
            let dropped = match outcome.dropped {
                0 => String::new(),
                packets => format!(" ({packets} packets dropped so far)"),
            };
            let style = match outcome.status {
                OutcomeStatus::Enforced => GOOD,
                OutcomeStatus::Observed | OutcomeStatus::Pending | OutcomeStatus::Refused => DOUBT,
                OutcomeStatus::Failed => ALARM,
            };
            self.line(style, "AGENT", format_args!("{node} {address}{port}: {status}: {reason}{dropped}"));
            for rule in outcome.rules.iter().filter(|rule| shown.insert(rule.as_str())) {
                self.line(PLAIN, "RULE", format_args!("{node} {}", printable(rule, SHOWN)));
            }
        }
        for warning in &report.warnings {
            self.line(DOUBT, "WARNING", format_args!("{}: {}", report.node, printable(warning, SHOWN)));
        }
    }

    pub(super) fn rescan(&mut self, rescans: &[Rescan]) {
        if rescans.is_empty() {
            return;
        }
        let ports: PortSet = rescans.iter().flat_map(|rescan| rescan.ports.iter().copied()).collect();
        let addresses = counted(rescans.len(), "address");
        self.line(PLAIN, "RESCAN", format_args!("{ports} at {addresses}"));
    }

    /// `dropped` is what the guards say they dropped meanwhile, by node and port.
    pub(super) fn proofs(&mut self, checked: &[Checked], dropped: &BTreeMap<(Name, Port), u64>) {
        for Checked { node, address, port, verdict } in checked {
            let target = format_args!("{node} {address} {port}");
            match verdict {
                Verdict::Closed(evidence) => {
                    // A guard of iptables does not count, and says 0.
                    let guard = match dropped.get(&(node.clone(), *port)) {
                        None | Some(0) => String::new(),
                        Some(packets) => format!("; the guard dropped {packets} packets for {port} meanwhile"),
                    };
                    self.line(GOOD, "PROOF", format_args!("{target} is closed: {evidence}{guard}"));
                }
                Verdict::StillOpen => self.line(ALARM, "NO PROOF", format_args!("{target} is still open: it answered")),
                Verdict::Unproven(why) => self.line(DOUBT, "NO PROOF", format_args!("{target}: {why}")),
            }
        }
    }

    pub(super) fn ending(&mut self, ending: &Ending) {
        for (node, address) in &ending.blind {
            self.line(
                DOUBT,
                "BLIND",
                format_args!("{node} {address}: the control port does not answer, so silence proves nothing"),
            );
        }
        let Ending { open, unproven, closed, unknown, .. } = ending;
        let mut counts = format!("unexpected ports: {closed} proven closed, {unproven} unproven, {open} still open");
        if *unknown > 0 {
            counts += &format!("; {unknown} targets could not be asked");
        }
        match (*open, ending.is_complete()) {
            (0, true) if *closed == 0 => self.line(GOOD, "RESULT", format_args!("nothing unexpected is open")),
            (0, true) => self.line(GOOD, "RESULT", format_args!("{counts}")),
            (0, false) => self.line(DOUBT, "RESULT", format_args!("incomplete: {counts}")),
            (_, _) => self.line(ALARM, "RESULT", format_args!("{counts}")),
        }
    }

    fn line(&mut self, style: Style, word: &str, text: fmt::Arguments<'_>) {
        if let Err(error) = written(writeln!(self.out, "{style}{word:<8}{style:#} {text}")) {
            tracing::warn!(%error, "failed to tell the story");
        }
    }
}

/// Whether it is something that the round before did not have.
fn is_new(news: &News<'_>) -> bool {
    match *news {
        News::Swept { assessment, before, .. } => {
            let known: BTreeMap<_, _> = before.iter().map(|finding| (&finding.id, finding.status)).collect();
            let is_changed = |finding: &Finding| known.get(&finding.id) != Some(&finding.status);
            let mut exposed = assessment.findings.iter().filter(|finding| assessment.exposed.contains(&finding.id));
            exposed.any(is_changed)
        }
        News::Contradicted(_) => true,
        News::Looked { checked, .. } => checked.iter().any(|checked| matches!(checked.verdict, Verdict::Closed(_))),
        News::Unanswered { .. } | News::Answered { .. } | News::Looking(_) | News::Ended(_) => false,
    }
}
