//! What a scanner can ask, and the answers to what it must not.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use deadlight_shared::wire::{MAX_BODY, Order, Problem, Status};
use deadlight_shared::{Identity, Name, Port};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;

use super::connection::ReadBy;
use super::slots::Slots;
use crate::explain::Question;
use crate::node::{Node, NodeError};

/// The service; every request must carry the peer's [`Identity`] and address, and until when it is read, as extensions.
pub fn router(node: Arc<Node>, slots: Slots) -> Router {
    Router::new()
        .route("/v1/exposures", put(put_exposures))
        .route("/v1/status", get(get_status))
        .route("/v1/explain/{protocol}/{port}", get(get_explanation))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no such method here"))
        .layer(Extension(slots))
        .with_state(node)
}

/// Longest time that a scanner's clock may be ahead, in seconds: an epoch from the far future would
/// shut its scanner out for good.
const EPOCH_AHEAD: i64 = 86_400;

async fn put_exposures(
    State(node): State<Arc<Node>>,
    Extension(peer): Extension<Identity>,
    Extension(address): Extension<SocketAddr>,
    Extension(read_by): Extension<ReadBy>,
    Extension(slots): Extension<Slots>,
    request: Request,
) -> Answer {
    let scanner = scanner(&peer)?;
    let order = read_order(request, read_by).await?;
    let now = Timestamp::now();
    if order.scanner != scanner {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "the order names another scanner than the certificate"));
    }
    if order.node != *node.name() {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            &format!("the order is for {}, this is {}", order.node, node.name()),
        ));
    }
    if i64::try_from(order.epoch).is_ok_and(|epoch| epoch > now.as_second() + EPOCH_AHEAD) {
        return Err(Refusal::new(StatusCode::CONFLICT, "the order's epoch lies in the future"));
    }
    if order.expires_at < now {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "the order has expired; compare the clocks of scanner and node",
        ));
    }
    // In a task of its own: a scanner that hangs up must not leave an order half done.
    match tokio::spawn(async move { node.answer(&order, address.ip().to_canonical()).await }).await {
        Ok(report) => json(report),
        Err(_) => {
            slots.panicked();
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the agent failed while carrying out the order"))
        }
    }
}

async fn get_status(
    State(node): State<Arc<Node>>,
    Extension(peer): Extension<Identity>,
    Extension(slots): Extension<Slots>,
) -> Answer {
    scanner(&peer)?;
    json(node.status().await.map(|status| Status { callers: Some(slots.callers()), ..status }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    address: Option<std::net::IpAddr>,
}

async fn get_explanation(
    State(node): State<Arc<Node>>,
    Extension(peer): Extension<Identity>,
    Extension(scanner_address): Extension<SocketAddr>,
    Path((protocol, port)): Path<(String, String)>,
    query: Result<Query<ExplainQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    scanner(&peer)?;
    let port: Port = format!("{port}/{protocol}").parse().map_err(unprocessable)?;
    let Query(query) = query.map_err(unprocessable)?;
    let from = Some(scanner_address.ip().to_canonical());
    json(node.explain(Question { port, address: query.address, from }).await)
}

type Answer = Result<Response, Refusal>;

/// An answer that is not a success.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    detail: String,
}

impl Refusal {
    fn new(status: StatusCode, detail: &str) -> Self {
        Self { status, detail: detail.to_owned() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        tracing::warn!(status = self.status.as_u16(), detail = ?self.detail, "request refused");
        let problem = Problem {
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        with_type(self.status, "application/problem+json", &problem)
    }
}

fn scanner(peer: &Identity) -> Result<Name, Refusal> {
    match peer {
        Identity::Scanner(name) => Ok(name.clone()),
        Identity::Agent(_) => {
            Err(Refusal::new(StatusCode::FORBIDDEN, "only a scanner may ask; this is an agent's certificate"))
        }
    }
}

async fn read_order(request: Request, ReadBy(limit): ReadBy) -> Result<Order, Refusal> {
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bodies are never compressed"));
    }
    let body = timeout_at(limit, to_bytes(request.into_body(), MAX_BODY))
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?
        .map_err(|_| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, &format!("a body may have {MAX_BODY} bytes")))?;
    let order: Order = serde_json::from_slice(&body).map_err(unprocessable)?;
    order.check().map_err(unprocessable)?;
    Ok(order)
}

fn unprocessable(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string())
}

fn json<T: Serialize>(result: Result<T, NodeError>) -> Answer {
    match result {
        Ok(value) => Ok(with_type(StatusCode::OK, "application/json", &value)),
        Err(error @ NodeError::Stale) => Err(Refusal::new(StatusCode::CONFLICT, &error.to_string())),
        Err(error) => {
            let chain = deadlight_shared::hint::render(&error);
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, chain.trim_start_matches("error: ")))
        }
    }
}

fn with_type<T: Serialize>(status: StatusCode, content_type: &'static str, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, content_type)], Body::from(body)).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
