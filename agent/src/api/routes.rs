//! What a scanner can ask, and the answers to what it must not.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, FromRef, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use deadlight_shared::hint::causes;
use deadlight_shared::trust::TRUST_HEADER;
use deadlight_shared::wire::{CertificateCall, MAX_BODY, Order, Problem, RenewAnswer, Status};
use deadlight_shared::{Identity, Name, Port};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;

use super::connection::ReadBy;
use super::slots::Slots;
use crate::explain::Question;
use crate::identity::{IdentityError, Keyring};
use crate::node::{Node, NodeError};
use crate::plan::{self, Inadmissible};

/// What requests are answered with.
#[derive(Clone)]
struct Api {
    node: Arc<Node>,
    keyring: Arc<Keyring>,
    slots: Slots,
}

impl FromRef<Api> for Arc<Node> {
    fn from_ref(api: &Api) -> Self {
        Self::clone(&api.node)
    }
}

impl FromRef<Api> for Arc<Keyring> {
    fn from_ref(api: &Api) -> Self {
        Self::clone(&api.keyring)
    }
}

/// The service; every request must carry the peer's [`Identity`] and address, and until when it is read, as extensions.
pub fn router(node: Arc<Node>, keyring: Arc<Keyring>, slots: Slots) -> Router {
    let api = Api { node, keyring, slots };
    Router::new()
        .route("/v1/renew", post(post_renew))
        .route("/v1/certificate", put(put_certificate))
        .route("/v1/exposures", put(put_exposures))
        .route("/v1/status", get(get_status))
        .route("/v1/alive", get(async || StatusCode::NO_CONTENT))
        .route("/v1/explain/{protocol}/{port}", get(get_explanation))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no such method here"))
        .layer(middleware::from_fn_with_state(api.clone(), learn))
        .with_state(api)
}

/// Whom to trust is learnt before the request is answered; the answer says what is held now.
async fn learn(
    State(keyring): State<Arc<Keyring>>,
    Extension(peer): Extension<Identity>,
    request: Request,
    next: Next,
) -> Answer {
    scanner(&peer)?;
    if let Some(header) = request.headers().get(TRUST_HEADER).and_then(|value| value.to_str().ok()) {
        let learnt = keyring.learn(header);
        learnt.map_err(|error| Refusal::new(StatusCode::FORBIDDEN, &causes(&error)))?;
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(TRUST_HEADER, keyring.generation().into());
    Ok(response)
}

async fn post_renew(State(keyring): State<Arc<Keyring>>) -> Answer {
    let request = keyring.request().map_err(not_installed)?;
    Ok(with_type(StatusCode::OK, "application/json", &RenewAnswer { request }))
}

async fn put_certificate(
    State(keyring): State<Arc<Keyring>>,
    Extension(read_by): Extension<ReadBy>,
    request: Request,
) -> Answer {
    let call: CertificateCall = read_json(request, read_by).await?;
    if call.schema != CertificateCall::SCHEMA {
        return Err(unprocessable(format_args!("schema is not {}", CertificateCall::SCHEMA)));
    }
    keyring.install(&call.certificate).map_err(not_installed)?;
    tracing::info!(until = %keyring.validity().to, "our certificate is renewed");
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn not_installed(error: IdentityError) -> Refusal {
    let status = match error {
        IdentityError::NotRequested | IdentityError::OtherKey => StatusCode::CONFLICT,
        IdentityError::OtherIdentity { .. } => StatusCode::FORBIDDEN,
        IdentityError::Document(_) | IdentityError::Key(_) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    Refusal::new(status, &causes(&error))
}

async fn put_exposures(
    State(Api { node, keyring, slots }): State<Api>,
    Extension(peer): Extension<Identity>,
    Extension(address): Extension<SocketAddr>,
    Extension(read_by): Extension<ReadBy>,
    request: Request,
) -> Answer {
    let scanner = scanner(&peer)?;
    let order = read_order(request, read_by).await?;
    // A node that boots in 1970 still knows when its certificate was made.
    plan::admit(&order, &scanner, node.name(), Timestamp::now().max(keyring.validity().from))?;
    // In a task of its own: a scanner that hangs up must not leave an order half done.
    match tokio::spawn(async move { node.answer(&order, address.ip().to_canonical()).await }).await {
        Ok(report) => json(report),
        Err(_) => {
            slots.panicked();
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the agent failed while carrying out the order"))
        }
    }
}

async fn get_status(State(Api { node, slots, .. }): State<Api>, Extension(peer): Extension<Identity>) -> Answer {
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

pub(super) type Answer = Result<Response, Refusal>;

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    detail: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, detail: &str) -> Self {
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

impl From<Inadmissible> for Refusal {
    fn from(reason: Inadmissible) -> Self {
        let status = match reason {
            Inadmissible::Scanner | Inadmissible::Node { .. } => StatusCode::FORBIDDEN,
            Inadmissible::Future | Inadmissible::Expired => StatusCode::CONFLICT,
        };
        Self::new(status, &reason.to_string())
    }
}

pub(super) fn scanner(peer: &Identity) -> Result<Name, Refusal> {
    match peer {
        Identity::Scanner(name) => Ok(name.clone()),
        Identity::Agent(_) => {
            Err(Refusal::new(StatusCode::FORBIDDEN, "only a scanner may ask; this is an agent's certificate"))
        }
    }
}

async fn read_order(request: Request, read_by: ReadBy) -> Result<Order, Refusal> {
    let order: Order = read_json(request, read_by).await?;
    order.check().map_err(unprocessable)?;
    Ok(order)
}

/// Of a body that is too long so much is passed over, so that the answer arrives: what is left unread makes the kernel
/// reset the connection.
const MAX_DRAINED: usize = 4 * MAX_BODY;

/// The body as JSON, bounded in size and time.
pub(super) async fn read_json<T: DeserializeOwned>(request: Request, ReadBy(limit): ReadBy) -> Result<T, Refusal> {
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bodies are never compressed"));
    }
    let mut parts = request.into_body().into_data_stream();
    let (mut body, mut length) = (Vec::new(), 0);
    let read = async {
        while let Some(part) = parts.try_next().await? {
            length += part.len();
            if length <= MAX_BODY {
                body.extend_from_slice(&part);
            } else if length > MAX_DRAINED {
                break;
            }
        }
        Ok::<_, axum::Error>(())
    };
    timeout_at(limit, read)
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, &causes(&error)))?;
    if length > MAX_BODY {
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, &format!("a body may have {MAX_BODY} bytes")));
    }
    serde_json::from_slice(&body).map_err(unprocessable)
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

pub(super) fn with_type<T: Serialize>(status: StatusCode, content_type: &'static str, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, content_type)], Body::from(body)).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
