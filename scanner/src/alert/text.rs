//! Alerts in words. What others said is escaped and kept short.

use deadlight_shared::Name;
use deadlight_shared::text::printable;
use deadlight_shared::wire::OutcomeStatus;

use super::{Alert, Kind, Severity};
use crate::store::Why;

/// Longest text of others.
const SHOWN: usize = 256;
/// So many are named in a message for people; the others are counted.
const NAMED: usize = 20;

/// A message for people: titles, what there is to know of an alert that is alone, and how many more there are.
/// `heading` and `plain` say how a title and any other text are written.
pub fn message(
    vantage: &Name,
    alerts: &[Alert],
    heading: impl Fn(&str) -> String,
    plain: impl Fn(&str) -> String,
) -> String {
    let mut text = String::new();
    // What must not be lost among the others is named first.
    let mut ordered: Vec<&Alert> = alerts.iter().collect();
    ordered.sort_by_key(|alert| {
        let is_plain = alert.kind != Kind::Contradicted && Severity::of(alert.finding.port()) != Severity::Critical;
        (alert.kind.is_end(), is_plain)
    });
    for alert in ordered.into_iter().take(NAMED) {
        text += &format!("{}\n", heading(&title(alert)));
        if alerts.len() == 1 {
            for (name, line) in lines(alert) {
                text += &format!("{name}: {}\n", plain(&line));
            }
        }
    }
    if let Some(more) = alerts.len().checked_sub(NAMED).filter(|more| *more > 0) {
        text += &format!("and {more} more: deadlight-scanner findings\n");
    }
    format!("{text}seen from {vantage}")
}

/// One line: what, where, how.
pub fn title(alert: &Alert) -> String {
    let finding = &alert.finding;
    let place = format!("{} on {} ({})", finding.port(), finding.node, finding.address);
    match alert.kind {
        Kind::Exposed => format!("EXPOSED {place}, not on the allowlist"),
        Kind::Unclosed => format!("STILL OPEN {place}: its agent did not close it ({})", finding.status),
        Kind::Contradicted => format!("CONTRADICTION {place}: its agent says closed, the network says open"),
        Kind::Reminder => format!("STILL OPEN {place}, since {:.0}", alert.episode.began),
        Kind::Resolved => format!("RESOLVED {place}: proven closed"),
        Kind::Test => "TEST of Deadlight's alerts: nothing is open".to_owned(),
        Kind::Allowed if alert.why == Some(Why::Unlisted) => {
            format!("ENDED {place}: not in the configuration any more, NOT proven closed")
        }
        Kind::Allowed => format!("ENDED {place}: on the allowlist by now"),
    }
}

/// What there is to know besides, as name and text.
pub fn lines(alert: &Alert) -> Vec<(&'static str, String)> {
    let finding = &alert.finding;
    if alert.kind == Kind::Test {
        return vec![("severity", Severity::Warning.as_str().to_owned())];
    }
    let mut lines = vec![
        ("severity", Severity::of(finding.port()).as_str().to_owned()),
        ("finding", finding.id.to_string()),
        ("first seen", format!("{:.0}", finding.first_seen)),
        ("open since", format!("{:.0}", alert.episode.began)),
    ];
    if let Some(service) = &finding.service {
        lines.push(("behind it", printable(service, SHOWN)));
    }
    match &alert.why {
        None => {}
        Some(Why::Agent(outcome)) => {
            let done = match outcome.status {
                OutcomeStatus::Enforced => "closed by its agent",
                OutcomeStatus::Observed => "nothing, its agent observes",
                OutcomeStatus::Refused => "nothing, its agent refuses",
                OutcomeStatus::Failed => "its agent tried and failed",
                OutcomeStatus::Pending => "its agent is about to",
            };
            lines.push(("cause", outcome.cause.to_string()));
            lines.push(("done", format!("{done}: {}", printable(&outcome.reason, SHOWN))));
        }
        Some(why) => lines.push(("why", why.to_string())),
    }
    if !alert.kind.is_end() {
        lines.push(("proof", "NOT proven closed".to_owned()));
        let (node, port) = (&finding.node, finding.port());
        let command = format!("deadlight-scanner allow {port} --node {node} --owner WHO --reason WHY");
        lines.push(("to allow it", command));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Episode;
    use crate::assess::first_seen;
    use deadlight_shared::{Finding, FindingId, FindingStatus};
    use jiff::Timestamp;

    fn alert(kind: Kind, why: Option<Why>) -> Alert {
        let (node, port) = ("n1".parse().unwrap(), "2377/tcp".parse().unwrap());
        let address = "2001:db8::1".parse().unwrap();
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        let id = FindingId::of(&node, address, port);
        let service = Some("evil\n\u{1b}[31m".to_owned() + &"x".repeat(1_000));
        let finding = Finding { service, status: FindingStatus::Open, ..first_seen(&id, node, address, port, at) };
        let episode = Episode::new(3, at);
        Alert { number: 3, at, kind, episode, finding, why }
    }

    #[test]
    fn says_what_where_since_when_and_how_to_allow_it() {
        let alert = alert(Kind::Exposed, Some(Why::Sweep { evidence: "syn-ack".to_owned() }));
        assert_eq!(title(&alert), "EXPOSED 2377/tcp on n1 (2001:db8::1), not on the allowlist");
        let text: Vec<_> = lines(&alert).into_iter().map(|(name, text)| format!("{name}: {text}")).collect();
        let text = text.join("\n");
        for wanted in [
            "severity: critical",
            "open since: 2027-01-15T08:00:00Z",
            "why: a sweep saw it (syn-ack)",
            "proof: NOT proven closed",
            "to allow it: deadlight-scanner allow 2377/tcp --node n1 --owner WHO --reason WHY",
        ] {
            assert!(text.contains(wanted), "no {wanted:?} in {text}");
        }
    }

    #[test]
    fn what_others_say_is_one_short_escaped_line() {
        for (_, text) in lines(&alert(Kind::Reminder, None)) {
            assert!(!text.contains(['\n', '\u{1b}']) && text.len() < 300, "{text:?}");
        }
    }

    #[test]
    fn an_end_asks_for_nothing() {
        let resolved = alert(Kind::Resolved, Some(Why::Proof { evidence: "2 attempts".to_owned() }));
        assert_eq!(title(&resolved), "RESOLVED 2377/tcp on n1 (2001:db8::1): proven closed");
        assert!(lines(&resolved).iter().all(|(name, _)| !matches!(*name, "proof" | "to allow it")));
    }
}
