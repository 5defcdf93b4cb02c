//! How a place is spoken to.

use jiff::SignedDuration;
use lettre::message::Mailbox;

use super::Template;

/// The word for a manner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// JSON of our own, `deadlight.alert/v1`, or of the operator's.
    Webhook,
    /// An incoming webhook of Slack's.
    Slack,
    /// Alertmanager, API v2.
    Alertmanager,
    /// PagerDuty, events v2.
    Pagerduty,
    /// A mail server.
    Email,
}

/// How a place is spoken to, with what that takes besides a URL.
#[derive(Clone)]
pub enum Manner {
    /// By HTTP.
    Http(Words),
    /// By mail.
    Email(Post),
}

/// What is said by HTTP.
#[derive(Clone)]
pub enum Words {
    /// JSON of our own, `deadlight.alert/v1`, or what a template makes of it.
    Webhook(Option<Template>),
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

/// Who writes to whom.
#[derive(Clone)]
pub struct Post {
    /// The sender.
    pub from: Mailbox,
    /// The recipients; at least one.
    pub to: Vec<Mailbox>,
    /// The password of the user in the URL.
    pub password: Option<String>,
}

impl Kind {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Alertmanager => "alertmanager",
            Self::Pagerduty => "pagerduty",
            Self::Email => "email",
        }
    }

    /// After a message the next one waits so long, with everything that came meanwhile. PagerDuty takes one alert a
    /// message.
    pub fn between(self) -> SignedDuration {
        match self {
            Self::Webhook | Self::Slack | Self::Alertmanager | Self::Email => SignedDuration::from_secs(30),
            Self::Pagerduty => SignedDuration::from_millis(500),
        }
    }

    /// The most alerts that one message takes.
    pub(super) fn most(self) -> usize {
        match self {
            Self::Slack | Self::Email => usize::MAX,
            Self::Pagerduty => 1,
            Self::Webhook | Self::Alertmanager => 500,
        }
    }
}

impl Manner {
    /// Its word.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Http(words) => words.kind(),
            Self::Email(_) => Kind::Email,
        }
    }
}

impl Words {
    /// Their word.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Webhook(_) => Kind::Webhook,
            Self::Slack => Kind::Slack,
            Self::Alertmanager => Kind::Alertmanager,
            Self::Pagerduty { .. } => Kind::Pagerduty,
        }
    }
}
