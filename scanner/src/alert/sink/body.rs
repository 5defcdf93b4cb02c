//! Alerts in the words of each kind of sink. Pure.

use deadlight_shared::Name;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::alert::{Alert, Kind, Severity, lines, message, title};

/// Alertmanager takes for over what is not repeated until then. Reminders come every day, but for the longest silence (90
/// days) and the longest time between two sweeps (30). The real end is sent.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(24 * 125);

/// `deadlight.alert/v1`.
pub(super) fn webhook(vantage: &Name, alerts: &[Alert]) -> Value {
    let alert = |alert: &Alert| {
        let details: serde_json::Map<String, Value> =
            lines(alert).into_iter().map(|(name, text)| (name.replace(' ', "_"), text.into())).collect();
        json!({
            "number": alert.number,
            "at": alert.at,
            "kind": alert.kind,
            "key": alert.episode.key(&alert.finding.id),
            "severity": Severity::of(alert.finding.port()),
            "title": title(alert),
            "finding": alert.finding,
            "details": details,
        })
    };
    json!({
        "schema": "deadlight.alert/v1",
        "vantage": vantage,
        "alerts": alerts.iter().map(alert).collect::<Vec<_>>(),
    })
}

/// An incoming webhook of Slack's: one text.
pub(super) fn slack(vantage: &Name, alerts: &[Alert]) -> Value {
    let heading = |title: &str| format!("*{}*", slack_escaped(title));
    json!({ "text": message(vantage, alerts, heading, slack_escaped) })
}

/// Slack reads these three as its own.
fn slack_escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// One event of PagerDuty's, in which the same key is the same incident. A contradiction is part of its exposure's incident:
/// whoever has that one open sees it, and it ends with it.
pub(super) fn pagerduty(vantage: &Name, routing_key: &str, alert: &Alert) -> Value {
    let finding = &alert.finding;
    let action = match alert.kind {
        Kind::Resolved | Kind::Allowed => "resolve",
        Kind::Exposed | Kind::Unclosed | Kind::Contradicted | Kind::Reminder | Kind::Test => "trigger",
    };
    let details: serde_json::Map<String, Value> =
        lines(alert).into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
    json!({
        "routing_key": routing_key,
        "event_action": action,
        "dedup_key": alert.episode.key(&finding.id),
        "payload": {
            "summary": title(alert),
            "source": format!("{} ({})", finding.node, finding.address),
            "severity": Severity::of(finding.port()),
            "timestamp": alert.at,
            "component": finding.port(),
            "group": vantage,
            "class": "exposure",
            "custom_details": details,
        },
    })
}

/// Alertmanager's v2 API: a list, in which the same labels are the same alert. Several alerts of one exposure in a
/// message are one there: the last.
pub(super) fn alertmanager(vantage: &Name, alerts: &[Alert], now: Timestamp) -> Value {
    let mut list: Vec<(String, Value)> = Vec::new();
    for alert in alerts {
        let finding = &alert.finding;
        let key = alert.episode.key(&finding.id);
        let names: &[&str] = match alert.kind {
            Kind::Resolved | Kind::Allowed => &["DeadlightExposed", "DeadlightContradiction"],
            Kind::Contradicted => &["DeadlightContradiction"],
            Kind::Test => &["DeadlightTest"],
            Kind::Exposed | Kind::Unclosed | Kind::Reminder => &["DeadlightExposed"],
        };
        let ends = match alert.kind {
            Kind::Resolved | Kind::Allowed => alert.at,
            Kind::Test => now.saturating_add(SignedDuration::from_mins(5)).unwrap_or(now),
            _ => now.saturating_add(FORGOTTEN_AFTER).unwrap_or(now),
        };
        let description: Vec<_> = lines(alert).into_iter().map(|(name, text)| format!("{name}: {text}")).collect();
        let entry = |name: &str| {
            json!({
                "labels": {
                    "alertname": name,
                    "node": finding.node,
                    "address": finding.address,
                    "port": finding.port(),
                    "severity": Severity::of(finding.port()),
                    "finding": finding.id,
                    "vantage": vantage,
                },
                "annotations": { "summary": title(alert), "description": description.join("\n") },
                "startsAt": alert.episode.began,
                "endsAt": ends,
            })
        };
        for name in names {
            let key = format!("{name} {key}");
            list.retain(|(known, _)| *known != key);
            list.push((key, entry(name)));
        }
    }
    Value::Array(list.into_iter().map(|(_, entry)| entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Episode;
    use crate::assess::first_seen;
    use deadlight_shared::FindingId;

    fn alert(number: u64, kind: Kind, node: &str) -> Alert {
        let (node, address, port) = (node.parse().unwrap(), "192.0.2.1".parse().unwrap(), "80/tcp".parse().unwrap());
        let id = FindingId::of(&node, address, port);
        let at = Timestamp::UNIX_EPOCH;
        let episode = Episode::new(1, at);
        let mut finding = first_seen(&id, node, address, port, at);
        finding.service = Some("<!channel> & \u{1b}[31m".to_owned());
        Alert { number, at, kind, episode, finding, why: None }
    }

    fn vantage() -> Name {
        "office-a".parse().unwrap()
    }

    #[test]
    fn a_webhook_hears_all_of_it() {
        let body = webhook(&vantage(), &[alert(1, Kind::Exposed, "n1"), alert(2, Kind::Resolved, "n1")]);
        assert_eq!(body["alerts"][0]["kind"], "exposed");
        assert_eq!(body["alerts"][0]["key"], body["alerts"][1]["key"]);
        assert_eq!(body["alerts"][0]["details"]["proof"], "NOT proven closed");
        assert_eq!(body["alerts"][1]["title"], "RESOLVED 80/tcp on n1 (192.0.2.1): proven closed");
    }

    #[test]
    fn slack_is_told_few_names_and_nobody_speaks_its_language_through_us() {
        let one = slack(&vantage(), &[alert(1, Kind::Exposed, "n1")])["text"].as_str().unwrap().to_owned();
        assert!(one.contains("behind it: &lt;!channel&gt; &amp; \\u{1b}[31m"), "{one}");
        let mut many: Vec<_> = (1..=9_999).map(|number| alert(number, Kind::Exposed, "n1")).collect();
        many.push(alert(10_000, Kind::Contradicted, "n1"));
        let text = slack(&vantage(), &many)["text"].as_str().unwrap().to_owned();
        assert!(text.contains("and 9980 more") && text.len() < 3_000, "{text}");
        assert!(text.starts_with("*CONTRADICTION"), "{text}");
    }

    #[test]
    fn pagerduty_has_one_incident_from_the_beginning_to_the_end() {
        let events: Vec<_> = [Kind::Exposed, Kind::Contradicted, Kind::Resolved]
            .map(|kind| pagerduty(&vantage(), "R0UT1NG", &alert(7, kind, "n1")))
            .into();
        let actions: Vec<_> = events.iter().map(|event| event["event_action"].as_str().unwrap()).collect();
        assert_eq!(actions, ["trigger", "trigger", "resolve"]);
        assert!(events.iter().all(|event| event["dedup_key"] == events[0]["dedup_key"]));
        assert!(events.iter().all(|event| event["routing_key"] == "R0UT1NG"));
        assert_eq!(events[0]["payload"]["severity"], "warning");
        assert!(events[1]["payload"]["summary"].as_str().unwrap().starts_with("CONTRADICTION"));
    }

    #[test]
    fn alertmanager_hears_of_an_exposure_once_and_of_its_end() {
        let now = Timestamp::from_second(1_000).unwrap();
        let alerts = [
            alert(1, Kind::Exposed, "n1"),
            alert(2, Kind::Unclosed, "n1"),
            alert(3, Kind::Contradicted, "n1"),
            alert(4, Kind::Exposed, "n2"),
        ];
        let body = alertmanager(&vantage(), &alerts, now);
        let names = |body: &Value| -> Vec<String> {
            body.as_array()
                .unwrap()
                .iter()
                .map(|a| format!("{} {}", a["labels"]["alertname"], a["labels"]["node"]))
                .collect()
        };
        assert_eq!(
            names(&body),
            ["\"DeadlightExposed\" \"n1\"", "\"DeadlightContradiction\" \"n1\"", "\"DeadlightExposed\" \"n2\"",]
        );
        assert!(body[0]["annotations"]["summary"].as_str().unwrap().starts_with("STILL OPEN"));
        assert_eq!(body[0]["endsAt"], "1970-05-06T00:16:40Z");
        let body = alertmanager(&vantage(), &[alert(5, Kind::Resolved, "n1")], now);
        assert_eq!(names(&body).len(), 2, "both end");
        assert_eq!(body[0]["endsAt"], "1970-01-01T00:00:00Z");
    }
}
