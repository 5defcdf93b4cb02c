//! The same in numbers, for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use deadlight_shared::FindingStatus;
use deadlight_shared::numbers::{Numbers, number, truth};
use jiff::Timestamp;
use prometheus::TEXT_FORMAT;

use super::picture::Picture;
use super::{NoAnswer, Site};
use crate::alert::Severity;

pub(super) async fn metrics(State(site): State<Arc<Site>>) -> Result<impl IntoResponse, NoAnswer> {
    let text = encoded(&Picture::take(&site).await?)?;
    Ok(([(CONTENT_TYPE, TEXT_FORMAT)], text))
}

fn encoded(picture: &Picture) -> prometheus::Result<Vec<u8>> {
    let numbers = Numbers::new("deadlight_scanner");
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let vantage = picture.config.vantage.to_string();
    numbers.gauge(
        "info",
        "The program and its vantage point; always 1.",
        ["version", "vantage"],
        [([version, vantage], 1.0)],
    )?;
    let findings = &picture.state.findings;
    let by_status = FindingStatus::ALL.map(|status| {
        let count = findings.iter().filter(|finding| finding.status == status).count();
        ([status.to_string()], number(count))
    });
    numbers.gauge(
        "findings",
        "Findings by their status; all but resolved and accepted are exposures.",
        ["status"],
        by_status,
    )?;
    let critical = findings
        .iter()
        .filter(|finding| !finding.status.is_over() && Severity::of(finding.port()) == Severity::Critical);
    numbers.gauge(
        "critical_exposures",
        "Exposures through which the swarm or its node can be taken over.",
        [],
        [([], number(critical.count()))],
    )?;
    let oldest = findings.iter().filter(|finding| !finding.status.is_over()).map(|finding| finding.first_seen).min();
    let oldest = oldest.map_or(0.0, |first| seconds(picture.now, first));
    numbers.gauge(
        "oldest_exposure_age_seconds",
        "Since when the exposure that was first seen earliest is known, also if it was closed in between; 0 without one.",
        [],
        [([], oldest)],
    )?;
    sweep(&numbers, picture)?;
    agents(&numbers, picture)?;
    let sinks = || picture.sinks.iter();
    let waiting = sinks().map(|sink| ([sink.name.clone()], sink.waiting as f64));
    numbers.gauge("alerts_waiting", "Alerts that a place has not taken yet.", ["sink"], waiting)?;
    let failing = sinks().map(|sink| ([sink.name.clone()], truth(sink.trouble.is_some())));
    numbers.gauge("alert_sink_failing", "Whether the last message to a place failed.", ["sink"], failing)?;
    numbers.gauge("nodes", "Nodes in the configuration.", [], [([], number(picture.config.nodes.len()))])?;
    let unswept = picture.status().unswept.len();
    numbers.gauge(
        "nodes_unswept",
        "Nodes that nobody looks after, or that are not swept yet by who does so now.",
        [],
        [([], number(unswept))],
    )?;
    let expired = picture.config.expired(picture.today).len();
    numbers.gauge(
        "allowlist_entries_expired",
        "Entries of the allowlist that have ended.",
        [],
        [([], number(expired))],
    )?;
    numbers.text()
}

/// Of the last full sweep; nothing where there was none.
fn sweep(numbers: &Numbers, picture: &Picture) -> prometheus::Result<()> {
    let Some(last) = &picture.coverage.last else { return Ok(()) };
    let age = seconds(picture.now, last.finished);
    numbers.gauge("last_sweep_age_seconds", "For how long the last full sweep has been over.", [], [([], age)])?;
    let complete = truth(last.is_complete());
    numbers.gauge("last_sweep_complete", "Whether the last full sweep saw everything.", [], [([], complete)])?;
    let duration = last.milliseconds as f64 / 1_000.0;
    numbers.gauge("last_sweep_duration_seconds", "How long the last full sweep took.", [], [([], duration)])?;
    let tally = &last.tally;
    let states = [
        ("open", tally.open),
        ("closed", tally.closed),
        ("filtered", tally.filtered),
        ("open_filtered", tally.open_filtered),
        ("unknown", tally.unknown),
    ];
    let states = states.map(|(state, count)| ([state.to_owned()], count as f64));
    numbers.gauge(
        "last_sweep_targets",
        "Targets of the last full sweep by the state they were seen in.",
        ["state"],
        states,
    )?;
    let probes = tally.probes_sent as f64;
    numbers.gauge("last_sweep_probes", "Probes that the last full sweep sent.", [], [([], probes)])?;
    let dropped = tally.dropped as f64;
    numbers.gauge(
        "last_sweep_frames_dropped",
        "Captured frames that this host lost in it; what they might have answered was asked again.",
        [],
        [([], dropped)],
    )?;
    let loss = if tally.controls == 0 { 0.0 } else { tally.lost as f64 / tally.controls as f64 };
    numbers.gauge(
        "last_sweep_loss_ratio",
        "Part of the questions to ports that had answered that was lost in it.",
        [],
        [([], loss)],
    )?;
    let blind = number(last.ending.blind.len());
    numbers.gauge("last_sweep_blind_addresses", "Addresses whose control port did not answer.", [], [([], blind)])
}

fn agents(numbers: &Numbers, picture: &Picture) -> prometheus::Result<()> {
    let age = |at: Timestamp| seconds(picture.now, at);
    let contacts = || picture.state.contacts.iter();
    let answered = contacts().filter_map(|(node, contact)| Some(([node.to_string()], age(contact.answered?))));
    numbers.gauge(
        "agent_report_age_seconds",
        "For how long an agent's last report has been there.",
        ["node"],
        answered,
    )?;
    let failing = contacts().map(|(node, contact)| ([node.to_string()], truth(contact.trouble.is_some())));
    numbers.gauge("agent_failing", "Whether the last order to an agent got no report.", ["node"], failing)?;
    let enforcing = contacts().filter_map(|(node, contact)| {
        let mode = contact.mode?;
        Some(([node.to_string(), mode.to_string()], 1.0))
    });
    numbers.gauge("agent_mode", "The mode an agent was last in; always 1.", ["node", "mode"], enforcing)?;
    let warned = contacts().filter_map(|(node, contact)| Some(([node.to_string()], age(contact.warned.as_ref()?.at))));
    numbers.gauge(
        "agent_warning_age_seconds",
        "For how long an agent's last warning, such as of drift, has been there.",
        ["node"],
        warned,
    )?;
    let certificates = picture.certificates().into_iter().map(|(node, to)| ([node.to_string()], -age(to)));
    numbers.gauge(
        "agent_certificate_seconds_left",
        "How long an agent's certificate still holds.",
        ["node"],
        certificates,
    )?;
    let mut closed = std::collections::BTreeMap::<_, usize>::new();
    for finding in picture.state.findings.iter().filter(|finding| finding.status == FindingStatus::Resolved) {
        *closed.entry((finding.node.to_string(), finding.protocol)).or_default() += 1;
    }
    let closed = closed.into_iter().map(|((node, protocol), count)| ([node, protocol.to_string()], number(count)));
    numbers.gauge("proven_closed", "Findings that are proven closed, by node.", ["node", "protocol"], closed)
}

fn seconds(now: Timestamp, then: Timestamp) -> f64 {
    now.duration_since(then).as_secs_f64()
}
