//! What strangers can make of an alert, and a place that is told of our log.

use std::sync::LazyLock;

use data_encoding::BASE64;
use deadlight_scanner::alert::{
    Alert, Episode, Kind, Manner, Post, Sink, SinkError, SinkKind, SinkStep, Template, Words,
};
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

/// Every header of a mail.
const HEADERS: [&str; 11] = [
    "Auto-Submitted",
    "Content-Transfer-Encoding",
    "Content-Type",
    "Date",
    "From",
    "In-Reply-To",
    "MIME-Version",
    "Message-ID",
    "References",
    "Subject",
    "To",
];
/// What `finding` is, is for programs; the rest for people.
const TEMPLATE: &str = r#"{"content": {{ text }}, "finding": {{ alerts[0].finding.service | default("") }}}"#;

static SINKS: LazyLock<Vec<Sink>> = LazyLock::new(|| {
    let vantage = || "office-a".parse().expect("it is a name");
    let mailbox = || "ops@example.net".parse().expect("it is a mailbox");
    let template = Template::new(TEMPLATE.to_owned(), &vantage(), &told(Kind::Exposed, None, "")).expect("it is good");
    let words = [
        Words::Webhook(None),
        Words::Webhook(Some(template)),
        Words::Slack,
        Words::Alertmanager,
        Words::Pagerduty { key: "key".to_owned() },
    ];
    let mail = Manner::Email(Post { from: mailbox(), to: vec![mailbox()], password: None });
    let sink = |manner: Manner| {
        let scheme = if manner.kind() == SinkKind::Email { "smtp" } else { "http" };
        let url = format!("{scheme}://127.0.0.1:9/").parse().expect("it is a URL");
        Sink::new(manner.kind().as_str().to_owned(), manner, url, vantage()).expect("it needs nothing")
    };
    words.map(Manner::Http).into_iter().chain([mail]).map(sink).collect()
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
            let message = sink.message(alerts, Timestamp::UNIX_EPOCH).expect("it is good").expect("there is an alert");
            assert!(message.len() <= LONGEST + 8 * bytes.len(), "{} bytes", message.len());
            match sink.kind() {
                SinkKind::Email => assert_mail(&message),
                kind => {
                    let body: Value = serde_json::from_slice(&message).expect("it is JSON");
                    assert_shown(&body, kind == SinkKind::Slack);
                    if let Some(content) = body.get("content") {
                        assert_eq!(
                            (body.as_object().expect("an object").len(), &body["finding"]),
                            (2, &service.clone().into())
                        );
                        assert_lines(content.as_str().expect("a string"));
                    }
                }
            }
        }
    }
    for error in [
        SinkError::Said { status: StatusCode::BAD_REQUEST, said: said.clone(), retry_after: None },
        SinkError::MailSaid { step: SinkStep::Letter, code: 550, said: said.clone() },
        SinkError::Mail(said),
    ] {
        assert_line(&error.to_string());
    }
}

/// No header but ours, and a body whose lines are what they seem.
fn assert_mail(mail: &[u8]) {
    let mail = str::from_utf8(mail).expect("it is ASCII");
    assert!(
        mail.is_ascii() && mail.split("\r\n").all(|line| line.len() <= 998 && !line.contains(['\r', '\n'])),
        "{mail:?}"
    );
    let (headers, body) = mail.split_once("\r\n\r\n").expect("headers end");
    let unfolded = headers.replace("\r\n ", " ");
    let headers: Vec<_> = unfolded.split("\r\n").map(|line| line.split_once(": ").expect("a header")).collect();
    assert!(headers.iter().all(|(name, _)| HEADERS.contains(name)), "{headers:?}");
    let encoding = headers.iter().find(|(name, _)| *name == "Content-Transfer-Encoding").expect("an encoding").1;
    let text = match encoding {
        "7bit" => body.as_bytes().to_vec(),
        "quoted-printable" => quoted_printable::decode(body, quoted_printable::ParseMode::Strict).expect("it is"),
        "base64" => BASE64.decode(body.replace("\r\n", "").as_bytes()).expect("it is"),
        other => panic!("{other}"),
    };
    let text = String::from_utf8(text).expect("it is UTF-8").replace("\r\n", "\n");
    assert_lines(&text);
    assert!(text.ends_with("seen from office-a\n"), "{text:?}");
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
