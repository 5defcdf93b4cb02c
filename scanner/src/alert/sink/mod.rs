//! Brings alerts to where somebody is woken.

mod body;
mod error;
mod hook;

pub use error::SinkError;
pub(super) use hook::{client, post};

use std::fmt;

use deadlight_shared::Name;
use jiff::{SignedDuration, Timestamp};
use reqwest::{Client, Url};
use serde_json::Value;

use super::Alert;
use super::queue::Sent;

/// The word for a way to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// JSON of our own, `deadlight.alert/v1`.
    Webhook,
    /// An incoming webhook of Slack's.
    Slack,
    /// Alertmanager, API v2.
    Alertmanager,
    /// PagerDuty, events v2.
    Pagerduty,
}

/// How a sink is spoken to, with what that takes besides a URL.
#[derive(Clone)]
pub enum Manner {
    /// JSON of our own, `deadlight.alert/v1`.
    Webhook,
    /// An incoming webhook of Slack's.
    Slack,
    /// Alertmanager, API v2.
    Alertmanager,
    /// PagerDuty, events v2.
    Pagerduty {
        /// The routing key, which is a secret.
        key: String,
    },
}

/// Somewhere that alerts are sent to. Its URL is a secret and is never shown.
#[derive(Clone)]
pub struct Sink {
    /// What it is called.
    pub name: String,
    manner: Manner,
    url: Url,
    client: Client,
    vantage: Name,
}

impl Kind {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Alertmanager => "alertmanager",
            Self::Pagerduty => "pagerduty",
        }
    }

    /// After a message the next one waits so long, with everything that came meanwhile. PagerDuty takes one alert a message.
    pub fn between(self) -> SignedDuration {
        match self {
            Self::Webhook | Self::Slack | Self::Alertmanager => SignedDuration::from_secs(30),
            Self::Pagerduty => SignedDuration::from_millis(500),
        }
    }
}

impl Manner {
    /// Its word.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Webhook => Kind::Webhook,
            Self::Slack => Kind::Slack,
            Self::Alertmanager => Kind::Alertmanager,
            Self::Pagerduty { .. } => Kind::Pagerduty,
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("name", &self.name).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

impl Sink {
    /// A sink for alerts of `vantage`.
    pub fn new(name: String, manner: Manner, url: Url, vantage: Name) -> Result<Self, SinkError> {
        Ok(Self { name, manner, client: client(&url)?, url, vantage })
    }

    /// What it takes.
    pub fn kind(&self) -> Kind {
        self.manner.kind()
    }

    /// Whether it may take later what ended with `error`, or never.
    pub fn sent(&self, error: &SinkError) -> Sent {
        match error {
            SinkError::Said { status, retry_after, .. } if hook::is_for_now(self.kind(), *status) => {
                Sent::Later(*retry_after)
            }
            SinkError::Said { .. } => Sent::Refused,
            _ => Sent::Later(None),
        }
    }

    /// The most alerts that one message takes.
    pub fn most(&self) -> usize {
        match self.kind() {
            Kind::Slack => usize::MAX,
            Kind::Pagerduty => 1,
            Kind::Webhook | Kind::Alertmanager => 500,
        }
    }

    /// A message in the words of this sink; none without alerts.
    pub fn body(&self, alerts: &[Alert], now: Timestamp) -> Option<Value> {
        let first = alerts.first()?;
        Some(match &self.manner {
            Manner::Webhook => body::webhook(&self.vantage, alerts),
            Manner::Slack => body::slack(&self.vantage, alerts),
            Manner::Pagerduty { key } => body::pagerduty(&self.vantage, key, first),
            Manner::Alertmanager => body::alertmanager(&self.vantage, alerts, now),
        })
    }

    /// Sends one message. It has arrived only when the sink says so.
    pub async fn send(&self, alerts: &[Alert], now: Timestamp) -> Result<(), SinkError> {
        let mut url = self.url.clone();
        if self.kind() == Kind::Alertmanager {
            url.set_path(&format!("{}/api/v2/alerts", url.path().trim_end_matches('/')));
        }
        let Some(body) = self.body(alerts, now) else { return Ok(()) };
        let mut request = self.client.post(url).json(&body);
        // The same for the same message, when it comes again, and for no other.
        if let (Kind::Webhook, [first, ..], Some(last)) = (self.kind(), alerts, alerts.last()) {
            let (from, to, at) = (first.number, last.number, first.at.as_microsecond());
            request = request.header("idempotency-key", format!("{}-{from}-{to}-{at}", self.vantage));
        }
        post(request).await
    }
}
