//! Brings alerts to where somebody is woken.

mod body;
mod error;
mod hook;
mod letter;
mod manner;
mod smtp;
mod template;

pub use error::{SinkError, Step as SinkStep};
pub(super) use hook::{client, post};
pub use manner::{Kind, Manner, Post, Words};
pub use template::{Template, TemplateError};

use std::fmt;

use deadlight_shared::Name;
use jiff::Timestamp;
use reqwest::{Client, Url};
use serde_json::Value;

use self::letter::letter;
use self::smtp::Relay;
use super::Alert;
use super::queue::Sent;

/// Somewhere that alerts are sent to. Its URL is a secret and is never shown.
#[derive(Clone)]
pub struct Sink {
    /// What it is called.
    pub name: String,
    way: Way,
    vantage: Name,
}

#[derive(Clone)]
enum Way {
    Http { words: Words, client: Client, url: Url },
    Mail { post: Post, relay: Relay },
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("name", &self.name).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

impl Sink {
    /// A sink for alerts of `vantage`.
    pub fn new(name: String, manner: Manner, url: Url, vantage: Name) -> Result<Self, SinkError> {
        let way = match manner {
            Manner::Http(words) => Way::Http { words, client: client(&url)?, url },
            Manner::Email(post) => Way::Mail { relay: Relay::new(&url, post.password.as_deref())?, post },
        };
        Ok(Self { name, way, vantage })
    }

    /// What it takes.
    pub fn kind(&self) -> Kind {
        match &self.way {
            Way::Http { words, .. } => words.kind(),
            Way::Mail { .. } => Kind::Email,
        }
    }

    /// Whether it may take later what ended with `error`, or never.
    pub fn sent(&self, error: &SinkError) -> Sent {
        match error {
            SinkError::Said { status, retry_after, .. } if hook::is_for_now(self.kind(), *status) => {
                Sent::Later(*retry_after)
            }
            SinkError::MailSaid { step, code, said } if smtp::is_for_now(*step, *code, said) => Sent::Later(None),
            SinkError::Said { .. } | SinkError::MailSaid { .. } => Sent::Refused,
            SinkError::Template(_) | SinkError::Letter(_) => Sent::Refused,
            _ => Sent::Later(None),
        }
    }

    /// The most alerts that one message takes.
    pub fn most(&self) -> usize {
        self.kind().most()
    }

    /// A message in the words of this sink, as it goes out; none without alerts.
    pub fn message(&self, alerts: &[Alert], now: Timestamp) -> Result<Option<Vec<u8>>, SinkError> {
        Ok(match &self.way {
            Way::Http { words, .. } => self.body(words, alerts, now)?.map(|body| body.to_string().into_bytes()),
            Way::Mail { post, .. } => letter(&self.vantage, post, alerts, now)?.map(|letter| letter.formatted()),
        })
    }

    /// Sends one message. It has arrived only when the sink says so.
    pub async fn send(&self, alerts: &[Alert], now: Timestamp) -> Result<(), SinkError> {
        match &self.way {
            Way::Http { words, client, url } => {
                let Some(body) = self.body(words, alerts, now)? else { return Ok(()) };
                let mut url = url.clone();
                if matches!(words, Words::Alertmanager) {
                    url.set_path(&format!("{}/api/v2/alerts", url.path().trim_end_matches('/')));
                }
                let mut request = client.post(url).json(&body);
                // The same for the same message, when it comes again, and for no other.
                if let (Words::Webhook(_), [first, ..], Some(last)) = (words, alerts, alerts.last()) {
                    let (from, to, at) = (first.number, last.number, first.at.as_microsecond());
                    request = request.header("idempotency-key", format!("{}-{from}-{to}-{at}", self.vantage));
                }
                post(request).await
            }
            Way::Mail { post, relay } => {
                let Some(letter) = letter(&self.vantage, post, alerts, now)? else { return Ok(()) };
                relay.hand_over(&letter).await
            }
        }
    }

    fn body(&self, words: &Words, alerts: &[Alert], now: Timestamp) -> Result<Option<Value>, TemplateError> {
        let Some(first) = alerts.first() else { return Ok(None) };
        Ok(Some(match words {
            Words::Webhook(None) => body::webhook(&self.vantage, alerts),
            Words::Webhook(Some(template)) => template.body(&self.vantage, alerts)?,
            Words::Slack => body::slack(&self.vantage, alerts),
            Words::Pagerduty { key } => body::pagerduty(&self.vantage, key, first),
            Words::Alertmanager => body::alertmanager(&self.vantage, alerts, now),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::SinkStep as Step;
    use super::*;

    #[test]
    fn a_mail_that_the_operator_can_have_let_through_waits() {
        let mailbox = || "a@example.net".parse().unwrap();
        let post = Post { from: mailbox(), to: vec![mailbox()], password: None };
        let url = "smtp://127.0.0.1".parse().unwrap();
        let sink = Sink::new("mail".to_owned(), Manner::Email(post), url, "a".parse().unwrap()).unwrap();
        let sent = |step, code, said: &str| sink.sent(&SinkError::MailSaid { step, code, said: said.to_owned() });
        for (step, code, said) in [
            (Step::Connection, 554, "no"),
            (Step::Login, 535, "5.7.8 wrong password"),
            (Step::Sender, 530, "5.7.0 log in first"),
            (Step::Recipient, 550, "5.1.1 no such user"),
            (Step::Recipient, 554, "5.7.1 relay access denied"),
            (Step::Letter, 451, "4.7.1 later"),
            (Step::Letter, 550, "5.7.1 not authorised"),
        ] {
            assert_eq!(sent(step, code, said), Sent::Later(None), "{code} {said}");
        }
        for (code, said) in [(552, "5.3.4 too big"), (554, "5.7.1 spam"), (550, "5.6.0 bad content"), (500, "")] {
            assert_eq!(sent(Step::Letter, code, said), Sent::Refused, "{code} {said}");
        }
        assert_eq!(sink.sent(&SinkError::NoStartTls), Sent::Later(None));
    }
}
