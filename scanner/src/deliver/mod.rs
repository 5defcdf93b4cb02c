//! One order to one agent, over mutual TLS, and its report; its certificates besides.

mod enrol;
mod obstacle;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use deadlight_shared::text::printable;
use deadlight_shared::trust::{SignedTrust, TRUST_HEADER};
use deadlight_shared::wire::{
    CertificateCall, Explanation, MAX_ANSWER, Order, OrderError, OrderMark, Problem, RenewAnswer, Report, Status,
};
use deadlight_shared::{Name, Port};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp, Unit};
use reqwest::header::{CONTENT_TYPE, DATE, HeaderValue};
use reqwest::{Client, Response, Url};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use enrol::{EnrolError, Meeting, Window};
pub use obstacle::Obstacle;

use crate::line::{Answer, Ask, LineError};
use crate::net::http_client;
use crate::pull::{Hub, PullError, Purpose};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Covers an agent that waits for another program's hold on the firewall.
const TOTAL_LIMIT: Duration = Duration::from_secs(60);
/// Changes nothing and waits for nobody but Docker's two seconds.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// A difference between two clocks that is said.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);
/// Longest text of an agent that is shown.
const SHOWN: usize = 300;

/// The way to one agent.
#[derive(Debug, Clone)]
pub struct Agent {
    node: Name,
    way: Way,
    trust: Option<HeaderValue>,
    /// The generation of the trust document that it last said to hold; 0 when it has said nothing.
    held: Arc<AtomicU64>,
    /// Seconds that its clock was ahead of ours when it last answered.
    ahead: Arc<AtomicI64>,
}

#[derive(Debug, Clone)]
enum Way {
    /// We call it.
    Push { url: Url, client: Client },
    /// It calls us.
    Pull { hub: Hub, purpose: Purpose },
}

/// Why an order has no report.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// The HTTP client cannot be made.
    #[error("failed to set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The order is too large.
    #[error("failed to put the findings into one order")]
    Order(#[from] OrderError),
    /// No answer came, or it broke off.
    #[error("failed to reach the agent at {url}")]
    Reach {
        /// The agent's address.
        url: Url,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The agent does not call, or not as it should.
    #[error("failed to reach the agent by its call")]
    Pull(#[source] PullError),
    /// The answer is larger than a report may be.
    #[error("the agent's answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    /// The agent said no.
    #[error("the agent answered {status}: {}", printable(.detail, SHOWN))]
    Said {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        detail: String,
    },
    /// The agent is older than we are, and refuses what it would understand by half.
    #[error("the agent does not know `{}`: it is older than this scanner; update it", printable(.field, SHOWN))]
    Unknown {
        /// What it does not know.
        field: String,
    },
    /// The answer is not what was asked for.
    #[error("failed to read the agent's answer")]
    Malformed(#[source] serde_json::Error),
    /// The answer is a report of another version or node.
    #[error("the agent answered with a report of {} for node {}", printable(.schema, SHOWN), .node)]
    Foreign {
        /// Its schema.
        schema: String,
        /// Its node.
        node: Name,
    },
    /// The agent has seen a later order and did nothing.
    #[error(
        "the agent already has order {}.{}, later than ours ({}.{}), and did nothing",
        .theirs.epoch, .theirs.sequence, .ours.epoch, .ours.sequence
    )]
    Outdated {
        /// The mark of our order.
        ours: OrderMark,
        /// The mark that the agent holds.
        theirs: OrderMark,
    },
}

impl DeliverError {
    /// Whether the agent says that it has a later order, or that the times do not fit.
    pub fn is_untimely(&self) -> bool {
        matches!(self, Self::Outdated { .. } | Self::Said { status: StatusCode::CONFLICT, .. })
    }
}

impl Agent {
    /// The agent of `node` at `url`, which has to prove to `tls` who it is. Each call carries `trust`.
    pub fn new(node: &Name, url: &Url, tls: ClientConfig, trust: Option<&SignedTrust>) -> Result<Self, DeliverError> {
        let client = http_client(tls).https_only(true).connect_timeout(CONNECT_LIMIT).build();
        let client = client.map_err(DeliverError::Client)?;
        Ok(Self::by(node, Way::Push { url: url.clone(), client }, trust))
    }

    /// The agent of `node`, which calls us at `hub`.
    pub fn calling(node: &Name, hub: &Hub, purpose: Purpose, trust: Option<&SignedTrust>) -> Self {
        Self::by(node, Way::Pull { hub: hub.clone(), purpose }, trust)
    }

    fn by(node: &Name, way: Way, trust: Option<&SignedTrust>) -> Self {
        // Base64 has no character that a header could not carry.
        let trust = trust.and_then(|trust| HeaderValue::from_str(&trust.to_header()).ok());
        Self { node: node.clone(), way, trust, held: Arc::default(), ahead: Arc::default() }
    }

    /// Sends `order`; the report of what was done.
    pub async fn deliver(&self, order: &Order) -> Result<Report, DeliverError> {
        order.check()?;
        let put = async |order: &Order| {
            read(&self.answer(self.question(Method::PUT, "/v1/exposures", TOTAL_LIMIT).with(order)?).await?)
        };
        let mut order = order.clone();
        let mut report: Result<Report, _> = put(&order).await;
        while let Err(DeliverError::Unknown { field }) = &report
            && let Some(less) = order.without(field)
        {
            tracing::warn!(node = %self.node, "its agent is older than this scanner; ordered without `{field}`: update it");
            order = less;
            report = put(&order).await;
        }
        if let (Err(DeliverError::Said { status: StatusCode::CONFLICT, .. }), Some(ahead)) = (&report, self.ahead()) {
            // Its clock is wrong, and the order is not: it may take as long to arrive by that clock as by ours.
            let expires_at = order.expires_at.checked_add(ahead).unwrap_or(order.expires_at);
            order.expires_at = expires_at;
            report = put(&order).await;
        }
        accept(report?, &self.node, OrderMark { epoch: order.epoch, sequence: order.sequence })
    }

    /// How much the node's clock was ahead of ours when it last answered, where that is more than a minute.
    pub fn ahead(&self) -> Option<SignedDuration> {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        (ahead.unsigned_abs() > CLOCKS_DIFFER).then_some(ahead)
    }

    /// The agent's state of health.
    pub async fn status(&self) -> Result<Status, DeliverError> {
        read(&self.answer(self.question(Method::GET, "/v1/status", STATUS_LIMIT)).await?)
    }

    /// Why `port` is open there, at `address` where that is known.
    pub async fn explain(&self, port: Port, address: Option<IpAddr>) -> Result<Explanation, DeliverError> {
        let query = address.map(|address| format!("?address={address}")).unwrap_or_default();
        let path = format!("/v1/explain/{}/{}{query}", port.protocol, port.number);
        let explanation: Explanation = read(&self.answer(self.question(Method::GET, path, STATUS_LIMIT)).await?)?;
        match explanation.schema == Explanation::SCHEMA && explanation.node == self.node {
            true => Ok(explanation),
            false => Err(DeliverError::Foreign { schema: explanation.schema, node: explanation.node }),
        }
    }

    /// Asks for a request for its next certificate (PKCS#10, PEM).
    pub async fn request_renewal(&self) -> Result<String, DeliverError> {
        let answer = self.answer(self.question(Method::POST, "/v1/renew", STATUS_LIMIT)).await?;
        let RenewAnswer { request } = read(&answer)?;
        Ok(request)
    }

    /// Gives it the certificate (PEM) that it has requested.
    pub async fn install(&self, certificate: String) -> Result<(), DeliverError> {
        let schema = CertificateCall::SCHEMA.to_owned();
        let call = CertificateCall { schema, certificate, operator_key: None };
        let ask = self.question(Method::PUT, "/v1/certificate", STATUS_LIMIT).with(&call)?;
        self.answer(ask).await.map(drop)
    }

    /// The generation of the trust document that the agent said to hold when it last answered.
    pub fn held(&self) -> Option<u64> {
        Some(self.held.load(Ordering::Relaxed)).filter(|held| *held > 0)
    }

    fn question(&self, method: Method, path: impl Into<Cow<'static, str>>, limit: Duration) -> Ask {
        Ask { method, path: path.into(), body: None, trust: self.trust.clone(), limit }
    }

    async fn answer(&self, ask: Ask) -> Result<Bytes, DeliverError> {
        let Answer { status, headers, body } = match &self.way {
            Way::Push { url, client } => push(client, url, ask).await?,
            Way::Pull { hub, purpose } => hub.ask(&self.node, *purpose, &ask).await.map_err(|error| match error {
                PullError::Line(LineError::TooLong) => DeliverError::TooLong,
                error => DeliverError::Pull(error),
            })?,
        };
        if let Some(date) = headers.get(DATE).and_then(|value| rfc2822::parse(value.to_str().ok()?).ok()) {
            self.hear_clock(date.timestamp());
        }
        let held = headers.get(TRUST_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(held) = held {
            self.held.store(held, Ordering::Relaxed);
        }
        succeeded(status, &body)?;
        Ok(body)
    }

    fn hear_clock(&self, theirs: Timestamp) {
        let ahead = theirs.duration_since(Timestamp::now());
        self.ahead.store(ahead.as_secs(), Ordering::Relaxed);
        if ahead.unsigned_abs() > CLOCKS_DIFFER {
            let word = if ahead.is_negative() { "behind" } else { "ahead of" };
            let differs = ahead.abs().round(Unit::Minute).unwrap_or(ahead);
            tracing::warn!(node = %self.node, "its clock is {differs:#} {word} ours");
        }
    }
}

/// An answer of `status` is one, or the `body` says why not.
pub(crate) fn succeeded(status: StatusCode, body: &[u8]) -> Result<(), DeliverError> {
    if status.is_success() {
        return Ok(());
    }
    let detail = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => match problem.unknown_field() {
            Some(field) => return Err(DeliverError::Unknown { field: field.to_owned() }),
            None => format!("{}: {}", problem.title, problem.detail),
        },
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    Err(DeliverError::Said { status, detail })
}

/// `report`, if it is of `node` and answers our order.
pub fn accept(report: Report, node: &Name, ours: OrderMark) -> Result<Report, DeliverError> {
    if report.schema != Report::SCHEMA || report.node != *node {
        return Err(DeliverError::Foreign { schema: report.schema, node: report.node });
    }
    match report.order == ours {
        true => Ok(report),
        false => Err(DeliverError::Outdated { ours, theirs: report.order }),
    }
}

impl Ask {
    fn with<T: Serialize>(self, body: &T) -> Result<Self, DeliverError> {
        let body = serde_json::to_vec(body).map_err(DeliverError::Malformed)?;
        Ok(Self { body: Some(body.into()), ..self })
    }
}

pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, DeliverError> {
    serde_json::from_slice(body).map_err(DeliverError::Malformed)
}

async fn push(client: &Client, agent: &Url, ask: Ask) -> Result<Answer, DeliverError> {
    let reach = |source: reqwest::Error| DeliverError::Reach { url: agent.clone(), source: source.without_url() };
    let mut url = agent.clone();
    let (path, query) = ask.path.split_once('?').map_or((ask.path.as_ref(), None), |(path, query)| (path, Some(query)));
    url.set_path(path);
    url.set_query(query);
    let mut request = client.request(ask.method, url).timeout(ask.limit);
    if let Some(trust) = ask.trust {
        request = request.header(TRUST_HEADER, trust);
    }
    if let Some(body) = ask.body {
        request = request.header(CONTENT_TYPE, "application/json").body(body);
    }
    let response = request.send().await.map_err(reach)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = bounded(response).await?.map_err(reach)?;
    Ok(Answer { status, headers, body: body.into() })
}

/// The whole body, unless it is too long.
async fn bounded(mut response: Response) -> Result<Result<Vec<u8>, reqwest::Error>, DeliverError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Err(error) => return Ok(Err(error)),
            Ok(None) => return Ok(Ok(body)),
            Ok(Some(chunk)) if body.len() + chunk.len() > MAX_ANSWER => return Err(DeliverError::TooLong),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
        }
    }
}
