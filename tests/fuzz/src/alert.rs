//! What strangers can make of an alert, and a place that is told of our log.

use std::sync::LazyLock;

use deadlight_scanner::alert::{Alert, Episode, Kind, Manner, Sink, SinkError, SinkKind};
use deadlight_scanner::assess::first_seen;
use deadlight_scanner::store::Why;
use deadlight_shared::wire::{Cause, CauseKind, Outcome, OutcomeStatus};
use deadlight_shared::{Finding, FindingId, Port};
use jiff::Timestamp;
use reqwest::StatusCode;
use serde_json::Value;

use crate::text::{assert_line, assert_lines};

/// More than this no place takes as one message.
const LONGEST: usize = 32 * 1_024;
const KINDS: [Kind; 7] =
    [Kind::Exposed, Kind::Unclosed, Kind::Contradicted, Kind::Reminder, Kind::Resolved, Kind::Allowed, Kind::Test];

static SINKS: LazyLock<Vec<Sink>> = LazyLock::new(|| {
    let pager = Manner::Pagerduty { key: "key".to_owned() };
    let manners = [Manner::Webhook, Manner::Slack, Manner::Alertmanager, pager];
    let url = || "http://127.0.0.1:9/".parse().expect("it is a URL");
    let vantage = || "office-a".parse().expect("it is a name");
    let sink = |manner: Manner| Sink::new(manner.kind().as_str().to_owned(), manner, url(), vantage());
    manners.map(|manner| sink(manner).expect("it needs nothing")).into()
});

/// What a service says of itself, what an agent says of it, and what a place says when it is told of both.
pub fn alert(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(4, '\n').map(str::to_owned);
    let [service, reason, name, said] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let alerts: Vec<Alert> = KINDS
        .iter()
        .zip([Some(agent(&reason, &name)), Some(Why::Sweep { evidence: reason.clone() }), None].iter().cycle())
        .map(|(kind, why)| told(*kind, why.clone(), &service))
        .collect();
    for sink in SINKS.iter() {
        for alerts in [&alerts[..], &alerts[..1], &alerts[1..2]] {
            let body = sink.body(alerts, Timestamp::UNIX_EPOCH).expect("there is an alert");
            assert!(body.to_string().len() <= LONGEST + 8 * bytes.len(), "{} bytes", body.to_string().len());
            assert_shown(&body, sink.kind() == SinkKind::Slack);
        }
    }
    let error = SinkError::Said { status: StatusCode::BAD_REQUEST, said, retry_after: None };
    assert_line(&error.to_string());
}

/// Everything but the finding itself, which is for programs.
fn assert_shown(value: &Value, is_slack: bool) {
    match value {
        Value::String(text) if is_slack => {
            assert_lines(text);
            let unescaped = text.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
            assert!(!unescaped.contains(['<', '>', '&']), "Slack reads {text:?}");
        }
        Value::String(text) => assert_lines(text),
        Value::Array(values) => values.iter().for_each(|value| assert_shown(value, is_slack)),
        Value::Object(fields) => {
            fields.iter().filter(|(name, _)| *name != "finding").for_each(|(_, value)| assert_shown(value, is_slack));
        }
        _ => {}
    }
}

fn agent(reason: &str, name: &str) -> Why {
    let Port { protocol, number } = port();
    Why::Agent(Box::new(Outcome {
        finding: finding("").id,
        protocol,
        port: number,
        status: OutcomeStatus::Failed,
        reason: reason.to_owned(),
        cause: Cause { service: Some(name.to_owned()), ..Cause::new(CauseKind::SwarmIngress) },
        rules: vec![name.to_owned()],
        dropped: 0,
    }))
}

fn told(kind: Kind, why: Option<Why>, service: &str) -> Alert {
    let at = Timestamp::UNIX_EPOCH;
    Alert { number: 1, at, kind, episode: Episode::new(1, at), finding: finding(service), why }
}

fn finding(service: &str) -> Finding {
    let (node, address) = ("n1".parse().expect("a name"), "2001:db8::1".parse().expect("an address"));
    let id = FindingId::of(&node, address, port());
    Finding { service: Some(service.to_owned()), ..first_seen(&id, node, address, port(), Timestamp::UNIX_EPOCH) }
}

fn port() -> Port {
    "2377/tcp".parse().expect("a port")
}
