//! One order to one agent, over mutual TLS, and its report; its certificates besides.

mod enrol;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use deadlight_shared::Name;
use deadlight_shared::text::printable;
use deadlight_shared::trust::{SignedTrust, TRUST_HEADER};
use deadlight_shared::wire::{
    CertificateCall, MAX_ANSWER, Order, OrderError, OrderMark, Problem, RenewAnswer, Report, Status,
};
use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp, Unit};
use reqwest::header::{DATE, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;

pub use enrol::{EnrolError, Window};

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
    url: Url,
    client: Client,
    /// The generation of the trust document that it last said to hold; 0 when it has said nothing.
    held: Arc<AtomicU64>,
    /// Seconds that its clock was ahead of ours when it last answered.
    ahead: Arc<AtomicI64>,
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

impl Agent {
    /// The agent of `node` at `url`, which has to prove to `tls` who it is. Each call carries `trust`.
    pub fn new(node: &Name, url: &Url, tls: ClientConfig, trust: Option<&SignedTrust>) -> Result<Self, DeliverError> {
        let mut headers = HeaderMap::new();
        // Base64 has no character that a header could not carry.
        if let Some(value) = trust.and_then(|trust| HeaderValue::from_str(&trust.to_header()).ok()) {
            headers.insert(TRUST_HEADER, value);
        }
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .default_headers(headers)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .timeout(TOTAL_LIMIT)
            .user_agent(concat!("deadlight-scanner/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(DeliverError::Client)?;
        Ok(Self { node: node.clone(), url: url.clone(), client, held: Arc::default(), ahead: Arc::default() })
    }

    /// Where the agent is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Sends `order`; the report of what was done.
    pub async fn deliver(&self, order: &Order) -> Result<Report, DeliverError> {
        order.check()?;
        let put = |order: &Order| self.ask(self.client.put(self.path("/v1/exposures")).json(order));
        let mut report: Result<Report, _> = put(order).await;
        if let (Err(DeliverError::Said { status: StatusCode::CONFLICT, .. }), Some(ahead)) = (&report, self.ahead()) {
            // Its clock is wrong, and the order is not: it may take as long to arrive by that clock as by ours.
            let expires_at = order.expires_at.checked_add(ahead).unwrap_or(order.expires_at);
            report = put(&Order { expires_at, ..order.clone() }).await;
        }
        self.accept(report?, OrderMark { epoch: order.epoch, sequence: order.sequence })
    }

    /// How much the node's clock was ahead of ours when it last answered, where that is more than a minute.
    pub fn ahead(&self) -> Option<SignedDuration> {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        (ahead.unsigned_abs() > CLOCKS_DIFFER).then_some(ahead)
    }

    /// The agent's state of health.
    pub async fn status(&self) -> Result<Status, DeliverError> {
        self.ask(self.client.get(self.path("/v1/status")).timeout(STATUS_LIMIT)).await
    }

    /// Asks for a request for its next certificate (PKCS#10, PEM).
    pub async fn request_renewal(&self) -> Result<String, DeliverError> {
        let RenewAnswer { request } = self.ask(self.client.post(self.path("/v1/renew")).timeout(STATUS_LIMIT)).await?;
        Ok(request)
    }

    /// Gives it the certificate (PEM) that it has requested.
    pub async fn install(&self, certificate: String) -> Result<(), DeliverError> {
        let schema = CertificateCall::SCHEMA.to_owned();
        let call = CertificateCall { schema, certificate, operator_key: None };
        let put = self.client.put(self.path("/v1/certificate")).timeout(STATUS_LIMIT).json(&call);
        self.answer(put).await.map(|_| ())
    }

    /// The generation of the trust document that the agent said to hold when it last answered.
    pub fn held(&self) -> Option<u64> {
        Some(self.held.load(Ordering::Relaxed)).filter(|held| *held > 0)
    }

    fn path(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, DeliverError> {
        serde_json::from_slice(&self.answer(request).await?).map_err(DeliverError::Malformed)
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Vec<u8>, DeliverError> {
        let reach =
            |source: reqwest::Error| DeliverError::Reach { url: self.url.clone(), source: source.without_url() };
        let response = request.send().await.map_err(reach)?;
        let status = response.status();
        if let Some(date) = response.headers().get(DATE).and_then(|value| rfc2822::parse(value.to_str().ok()?).ok()) {
            self.hear_clock(date.timestamp());
        }
        let held = response.headers().get(TRUST_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(held) = held {
            self.held.store(held, Ordering::Relaxed);
        }
        let body = bounded(response).await?.map_err(reach)?;
        if !status.is_success() {
            let detail = match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) => format!("{}: {}", problem.title, problem.detail),
                Err(_) => String::from_utf8_lossy(&body).into_owned(),
            };
            return Err(DeliverError::Said { status, detail });
        }
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

    fn accept(&self, report: Report, ours: OrderMark) -> Result<Report, DeliverError> {
        if report.schema != Report::SCHEMA || report.node != self.node {
            return Err(DeliverError::Foreign { schema: report.schema, node: report.node });
        }
        match report.order == ours {
            true => Ok(report),
            false => Err(DeliverError::Outdated { ours, theirs: report.order }),
        }
    }
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
