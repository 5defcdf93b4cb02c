//! What a scanner can ask of a node that waits to be enrolled.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::{post, put};
use deadlight_shared::Identity;
use deadlight_shared::hint::causes;
use deadlight_shared::trust::TRUST_HEADER;

use super::connection::{Channel, ReadBy};
use super::routes::{Answer, Refusal, read_json, scanner, with_type};
use crate::identity::{Window, WindowError};

/// The service while the window is open.
pub fn enrol_router(window: Arc<Window>) -> Router {
    Router::new()
        .route("/v1/enrol", post(enrol))
        .route("/v1/certificate", put(take))
        .fallback(async || Refusal::new(StatusCode::CONFLICT, "this node waits to be enrolled"))
        .with_state(window)
}

async fn enrol(
    State(window): State<Arc<Window>>,
    Extension(peer): Extension<Identity>,
    Extension(read_by): Extension<ReadBy>,
    Extension(channel): Extension<Channel>,
    request: Request,
) -> Answer {
    scanner(&peer)?;
    let call = read_json(request, read_by).await?;
    let answer = window.answer(&call, &channel).map_err(refused)?;
    Ok(with_type(StatusCode::OK, "application/json", &answer))
}

async fn take(
    State(window): State<Arc<Window>>,
    Extension(peer): Extension<Identity>,
    Extension(read_by): Extension<ReadBy>,
    headers: HeaderMap,
    request: Request,
) -> Answer {
    scanner(&peer)?;
    let call = read_json(request, read_by).await?;
    let trust = headers.get(TRUST_HEADER).and_then(|value| value.to_str().ok());
    window.take(&call, trust).map_err(refused)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn refused(error: WindowError) -> Refusal {
    let status = match error {
        WindowError::Proof(_) | WindowError::Unproven | WindowError::Trust(_) => StatusCode::FORBIDDEN,
        WindowError::OtherNode { .. } => StatusCode::CONFLICT,
        WindowError::Lost(_) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    Refusal::new(status, &causes(&error))
}
