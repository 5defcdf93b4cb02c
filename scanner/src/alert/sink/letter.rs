//! Alerts as a mail. Pure.

use std::time::SystemTime;

use deadlight_shared::Name;
use jiff::Timestamp;
use lettre::Message;
use lettre::message::header::{ContentType, HeaderName, HeaderValue, MIME_VERSION_1_0};

use super::Post;
use crate::alert::{Alert, message, title};

/// The mail that tells of `alerts`; none without alerts.
pub(super) fn letter(
    vantage: &Name,
    post: &Post,
    alerts: &[Alert],
    now: Timestamp,
) -> Result<Option<Message>, lettre::error::Error> {
    let (Some(first), Some(last)) = (alerts.first(), alerts.last()) else { return Ok(None) };
    let place = format!("{}@{}", vantage.as_str().replace('.', "-"), post.from.email.domain());
    let mut builder = Message::builder()
        .from(post.from.clone())
        .date(SystemTime::from(now))
        // Nobody answers that he is on holiday.
        .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
        .header(MIME_VERSION_1_0)
        .header(ContentType::TEXT_PLAIN);
    for to in &post.to {
        builder = builder.to(to.clone());
    }
    // The same for the same message, when it comes again, and for no other.
    let id = |what: &str, at: Timestamp| format!("<{what}.{}.{place}>", at.as_microsecond());
    let (subject, own) = match alerts {
        [alone] => {
            let episode = &alone.episode;
            let thread = id(&episode.key(&alone.finding.id), episode.began);
            let own = match alone.number == episode.number {
                true => thread,
                false => {
                    builder = builder.in_reply_to(thread.clone()).references(thread);
                    id(&alone.number.to_string(), alone.at)
                }
            };
            (title(alone), own)
        }
        _ => {
            let subject = format!("{} alerts from {vantage}", alerts.len());
            (subject, id(&format!("{}-{}", first.number, last.number), first.at))
        }
    };
    let text = message(vantage, alerts, str::to_owned, str::to_owned);
    builder.subject(subject).message_id(Some(own)).body(format!("{text}\n")).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::{Episode, Kind};
    use crate::assess::first_seen;
    use deadlight_shared::FindingId;

    fn alert(number: u64, kind: Kind) -> Alert {
        let (node, address, port) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap(), "80/tcp".parse().unwrap());
        let id = FindingId::of(&node, address, port);
        let at = Timestamp::UNIX_EPOCH;
        let mut finding = first_seen(&id, node, address, port, at);
        finding.service = Some("\r\n.\r\nBcc: all@example.net\r\n\r\ngrüße".to_owned());
        Alert { number, at, kind, episode: Episode::new(1, at), finding, why: None }
    }

    fn written(alerts: &[Alert]) -> String {
        let mailbox = |text: &str| text.parse().unwrap();
        let to = vec![mailbox("ops@example.net"), mailbox("Nächte <night@example.net>")];
        let post = Post { from: mailbox("Deadlight <deadlight@example.net>"), to, password: None };
        let letter = letter(&"office.a".parse().unwrap(), &post, alerts, Timestamp::UNIX_EPOCH).unwrap().unwrap();
        let text = String::from_utf8(letter.formatted()).unwrap();
        assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 998), "{text}");
        text.replace("\r\n", "\n")
    }

    fn header<'a>(letter: &'a str, name: &str) -> Option<&'a str> {
        let headers = letter.split("\n\n").next()?;
        headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    #[test]
    fn one_alert_is_told_in_full_and_nobody_adds_a_line() {
        let letter = written(&[alert(1, Kind::Exposed)]);
        assert_eq!(header(&letter, "Subject"), Some("EXPOSED 80/tcp on n1 (192.0.2.1), not on the allowlist"));
        assert_eq!(header(&letter, "Auto-Submitted"), Some("auto-generated"));
        assert_eq!(header(&letter, "MIME-Version"), Some("1.0"));
        assert_eq!(header(&letter, "Date"), Some("Thu, 01 Jan 1970 00:00:00 +0000"));
        assert_eq!(header(&letter, "Bcc"), None);
        assert!(letter.contains("behind it: ") && !letter.lines().any(|line| line.starts_with(['.', 'B'])), "{letter}");
        assert!(letter.trim_end().ends_with("seen from office.a"), "{letter}");
    }

    #[test]
    fn an_exposure_and_its_end_are_one_thread() {
        let [begins, stays, ends] = [(1, Kind::Exposed), (2, Kind::Reminder), (3, Kind::Resolved)]
            .map(|(number, kind)| written(&[alert(number, kind)]));
        let thread = header(&begins, "Message-ID").unwrap();
        assert!(thread.starts_with("<deadlight-") && thread.ends_with("-0.0.office-a@example.net>"), "{thread}");
        assert_eq!(header(&begins, "References"), None);
        for later in [&stays, &ends] {
            assert_eq!((header(later, "References"), header(later, "In-Reply-To")), (Some(thread), Some(thread)));
        }
        assert_ne!(header(&stays, "Message-ID"), header(&ends, "Message-ID"));
        assert_eq!(written(&[alert(3, Kind::Resolved)]), ends, "it is the same when it comes again");
    }

    #[test]
    fn many_are_named_and_counted() {
        let many: Vec<_> = (1..=25).map(|number| alert(number, Kind::Exposed)).collect();
        let letter = written(&many);
        assert_eq!(header(&letter, "Subject"), Some("25 alerts from office.a"));
        assert_eq!(header(&letter, "Message-ID"), Some("<1-25.0.office-a@example.net>"));
        assert_eq!(letter.matches("EXPOSED 80/tcp").count(), 20);
        assert!(letter.contains("and 5 more: deadlight-scanner findings"), "{letter}");
    }
}
