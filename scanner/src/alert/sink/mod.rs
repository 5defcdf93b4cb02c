//! Brings alerts to where somebody is woken, by HTTP.

mod body;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use deadlight_shared::Name;
use deadlight_shared::text::printable;
use jiff::{SignedDuration, Timestamp};
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde_json::Value;

use super::Alert;
use super::queue::Sent;
use crate::net::http_client;

/// For connection, question and answer together.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest text of a sink that is shown.
const SHOWN: usize = 200;
/// So much of an answer is read for the reason in it.
const READ: usize = 4 * 1024;

/// How a sink is spoken to.
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

/// Somewhere that alerts are sent to. Its URL is a secret and is never shown.
#[derive(Clone)]
pub struct Sink {
    /// What it is called.
    pub name: String,
    kind: Kind,
    url: Url,
    /// PagerDuty's routing key.
    key: Option<String>,
    client: Client,
    vantage: Name,
}

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The HTTP client cannot be made.
    #[error("failed to set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The system's list of CAs cannot be used.
    #[error("failed to set up TLS")]
    Tls(#[from] rustls::Error),
    /// No answer came, or it broke off.
    #[error("failed to reach it")]
    Reach(#[source] reqwest::Error),
    /// It said no.
    #[error("it answered {status}: {}", printable(.said, SHOWN))]
    Said {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        said: String,
        /// How long it wants us to wait.
        retry_after: Option<SignedDuration>,
    },
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Sink {
    /// A sink for alerts of `vantage`.
    pub fn new(name: String, kind: Kind, url: Url, key: Option<String>, vantage: Name) -> Result<Self, SinkError> {
        Ok(Self { name, kind, client: client(&url)?, url, key, vantage })
    }

    /// What it takes.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it may take later what ended with `error`, or never.
    pub fn sent(&self, error: &SinkError) -> Sent {
        match error {
            SinkError::Said { status, retry_after, .. } if is_for_now(self.kind, *status) => Sent::Later(*retry_after),
            SinkError::Said { .. } => Sent::Refused,
            _ => Sent::Later(None),
        }
    }

    /// The most alerts that one message takes.
    pub fn most(&self) -> usize {
        match self.kind {
            Kind::Slack => usize::MAX,
            Kind::Pagerduty => 1,
            Kind::Webhook | Kind::Alertmanager => 500,
        }
    }

    /// A message in the words of this sink; none without alerts.
    pub fn body(&self, alerts: &[Alert], now: Timestamp) -> Option<Value> {
        let first = alerts.first()?;
        Some(match self.kind {
            Kind::Webhook => body::webhook(&self.vantage, alerts),
            Kind::Slack => body::slack(&self.vantage, alerts),
            Kind::Pagerduty => body::pagerduty(&self.vantage, self.key.as_deref().unwrap_or_default(), first),
            Kind::Alertmanager => body::alertmanager(&self.vantage, alerts, now),
        })
    }

    /// Sends one message. It has arrived only when the sink says so.
    pub async fn send(&self, alerts: &[Alert], now: Timestamp) -> Result<(), SinkError> {
        let mut url = self.url.clone();
        if self.kind == Kind::Alertmanager {
            url.set_path(&format!("{}/api/v2/alerts", url.path().trim_end_matches('/')));
        }
        let Some(body) = self.body(alerts, now) else { return Ok(()) };
        let mut request = self.client.post(url).json(&body);
        // The same for the same message, when it comes again, and for no other.
        if let (Kind::Webhook, [first, ..], Some(last)) = (self.kind, alerts, alerts.last()) {
            let (from, to, at) = (first.number, last.number, first.at.as_microsecond());
            request = request.header("idempotency-key", format!("{}-{from}-{to}-{at}", self.vantage));
        }
        post(request).await
    }
}

/// Whoever asks `url`.
pub(super) fn client(url: &Url) -> Result<Client, SinkError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let tls = match url.scheme() {
        "https" => builder.with_platform_verifier()?,
        // Whoever is near needs no list of CAs, and a host without one can tell him.
        _ => builder.with_root_certificates(RootCertStore::empty()),
    };
    http_client(tls.with_no_client_auth()).timeout(LIMIT).build().map_err(SinkError::Client)
}

/// Sends `request`, whose URL is in no error; it has arrived only when the other side says so.
pub(super) async fn post(request: RequestBuilder) -> Result<(), SinkError> {
    let response = request.send().await.map_err(|error| SinkError::Reach(error.without_url()))?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(said(status, response).await),
    }
}

/// Whether another day, or an operator, may change what a sink says.
fn is_for_now(kind: Kind, status: StatusCode) -> bool {
    const PASSING: [StatusCode; 3] =
        [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    // Somebody has to log in first, or the address has moved.
    const MENDABLE: [StatusCode; 4] =
        [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::GONE];
    // What PagerDuty calls a bad request is most often a bad key.
    let is_bad_key = kind == Kind::Pagerduty && status == StatusCode::BAD_REQUEST;
    status.is_server_error()
        || status.is_redirection()
        || is_bad_key
        || PASSING.contains(&status)
        || MENDABLE.contains(&status)
}

async fn said(status: StatusCode, mut response: Response) -> SinkError {
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut said = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        said.extend_from_slice(&chunk[..chunk.len().min(READ - said.len())]);
        if said.len() == READ {
            break;
        }
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    SinkError::Said { status, said, retry_after: seconds.map(SignedDuration::from_secs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_is_refused_is_not() {
        let is_for_now = |kind, status: u16| is_for_now(kind, StatusCode::from_u16(status).unwrap());
        for status in [301, 401, 403, 404, 408, 410, 425, 429, 500, 502, 503] {
            assert!(is_for_now(Kind::Webhook, status), "{status}");
        }
        for status in [400, 405, 413, 422] {
            assert!(!is_for_now(Kind::Webhook, status), "{status}");
        }
        assert!(is_for_now(Kind::Pagerduty, 400));
    }
}
