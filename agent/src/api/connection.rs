//! One connection from its handshake to its end, each step with a deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use deadlight_shared::Identity;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::slots::Slot;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Header and body: whoever writes slowly is gone 9 seconds after the connection began.
const REQUEST_LIMIT: Duration = Duration::from_secs(4);
/// Request, work and answer together; causes alone may take Docker's two seconds.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// A peer that has proven by its certificate who it is.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) identity: Identity,
}

/// Until when the whole request must have come.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadBy(pub(super) Instant);

/// The handshake, and what the peer then asks. Before the handshake has shown a certificate, nothing is read as HTTP.
pub(super) async fn serve(stream: TcpStream, address: SocketAddr, tls: Arc<ServerConfig>, router: Router, slot: Slot) {
    let stream = match timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%address, "TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = match certificate.map(Identity::of_certificate) {
        Some(Ok(identity)) => identity,
        Some(Err(error)) => return tracing::warn!(%address, %error, "a certificate of our CA without an identity"),
        None => return tracing::warn!(%address, "no client certificate"),
    };
    if slot.prove(&identity) {
        answer(stream, Peer { address, identity }, router).await;
    }
}

/// Answers one request of `peer`.
pub(super) async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, router: Router) {
    let Peer { address, identity } = peer;
    let read_by = ReadBy(Instant::now() + REQUEST_LIMIT);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(identity.clone());
        request.extensions_mut().insert(address);
        request.extensions_mut().insert(read_by);
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_LIMIT)
        .keep_alive(false)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%address, %error, "connection ended early"),
        Err(_) => tracing::debug!(%address, "connection took too long"),
    }
}
