//! One order to one agent, over mutual TLS, and its report.

use std::time::Duration;

use deadlight_shared::Name;
use deadlight_shared::identity::Identity;
use deadlight_shared::text::printable;
use deadlight_shared::tls::{Credentials, TlsError};
use deadlight_shared::wire::{MAX_ANSWER, Order, OrderError, OrderMark, Problem, Report, Status};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Covers an agent that waits for another program's hold on the firewall.
const TOTAL_LIMIT: Duration = Duration::from_secs(60);
/// Changes nothing and waits for nobody but Docker's two seconds.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// Longest text of an agent that is shown.
const SHOWN: usize = 300;

/// The way to one agent.
#[derive(Debug, Clone)]
pub struct Agent {
    node: Name,
    url: Url,
    client: Client,
}

/// Why an order has no report.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// Our side of TLS cannot be set up.
    #[error("failed to set up TLS")]
    Tls(#[from] TlsError),
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
    /// The agent of `node` at `url`; it must prove by its certificate that it is this node's.
    pub fn new(node: &Name, url: &Url, credentials: &Credentials) -> Result<Self, DeliverError> {
        let tls = credentials.client_config(Identity::Agent(node.clone()))?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .timeout(TOTAL_LIMIT)
            .user_agent(concat!("deadlight-scanner/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(DeliverError::Client)?;
        Ok(Self { node: node.clone(), url: url.clone(), client })
    }

    /// Where the agent is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Sends `order`; the report of what was done.
    pub async fn deliver(&self, order: &Order) -> Result<Report, DeliverError> {
        order.check()?;
        let report: Report = self.ask(self.client.put(self.path("/v1/exposures")).json(order)).await?;
        accept(report, &self.node, OrderMark { epoch: order.epoch, sequence: order.sequence })
    }

    /// The agent's state of health.
    pub async fn status(&self) -> Result<Status, DeliverError> {
        self.ask(self.client.get(self.path("/v1/status")).timeout(STATUS_LIMIT)).await
    }

    fn path(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, DeliverError> {
        let reach =
            |source: reqwest::Error| DeliverError::Reach { url: self.url.clone(), source: source.without_url() };
        let response = request.send().await.map_err(reach)?;
        let status = response.status();
        let body = bounded(response).await?.map_err(reach)?;
        read(status, &body)
    }
}

/// What an answer of `status` says in its `body`.
pub(crate) fn read<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, DeliverError> {
    if !status.is_success() {
        let detail = match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => format!("{}: {}", problem.title, problem.detail),
            Err(_) => String::from_utf8_lossy(body).into_owned(),
        };
        return Err(DeliverError::Said { status, detail });
    }
    serde_json::from_slice(body).map_err(DeliverError::Malformed)
}

/// `report`, if it is of `node` and answers our order.
pub(crate) fn accept(report: Report, node: &Name, ours: OrderMark) -> Result<Report, DeliverError> {
    if report.schema != Report::SCHEMA || report.node != *node {
        return Err(DeliverError::Foreign { schema: report.schema, node: report.node });
    }
    match report.order == ours {
        true => Ok(report),
        false => Err(DeliverError::Outdated { ours, theirs: report.order }),
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
