//! One POST to a place that listens by HTTP.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::BuilderVerifierExt as _;

use super::{Kind, SinkError};
use crate::net::http_client;

/// For connection, question and answer together.
const LIMIT: Duration = Duration::from_secs(10);
/// So much of an answer is read for the reason in it.
const READ: usize = 4 * 1024;

/// Whoever asks `url`.
pub(in crate::alert) fn client(url: &Url) -> Result<Client, SinkError> {
    let tls = match url.scheme() {
        "https" => verifying()?,
        // Whoever is near needs no list of CAs, and a host without one can tell him.
        _ => builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
    };
    http_client(tls).timeout(LIMIT).build().map_err(SinkError::Client)
}

/// TLS that believes the CAs of this system.
pub(super) fn verifying() -> Result<ClientConfig, SinkError> {
    Ok(builder()?.with_platform_verifier()?.with_no_client_auth())
}

/// Sends `request`, whose URL is in no error; it has arrived only when the other side says so.
pub(in crate::alert) async fn post(request: RequestBuilder) -> Result<(), SinkError> {
    let response = request.send().await.map_err(|error| SinkError::Reach(error.without_url()))?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(said(status, response).await),
    }
}

/// Whether another day, or an operator, may change what a sink says.
pub(super) fn is_for_now(kind: Kind, status: StatusCode) -> bool {
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

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
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
