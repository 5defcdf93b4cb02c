//! One connection from its handshake to its end, each step with a deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use deadlight_shared::Identity;
use deadlight_shared::enrol::{EXPORTER_LABEL, EXPORTER_LENGTH};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// Header, body, work and answer together; causes alone may take Docker's two seconds.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// A trust document that revokes as many keys as it may has some 40 KiB as a header.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// What both ends of this TLS connection know and nobody else: its exported keying material.
#[derive(Debug, Clone)]
pub struct Channel(pub [u8; EXPORTER_LENGTH]);

/// A peer that has proven by its certificate who it is.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) identity: Identity,
    pub(super) channel: Channel,
}

/// The handshake, and what the peer then asks.
pub(super) async fn serve(stream: TcpStream, address: SocketAddr, tls: Arc<ServerConfig>, router: Router) {
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
    let mut channel = [0; EXPORTER_LENGTH];
    if let Err(error) = stream.get_ref().1.export_keying_material(&mut channel, EXPORTER_LABEL, None) {
        return tracing::warn!(%address, %error, "a connection without keying material");
    }
    answer(stream, Peer { address, identity, channel: Channel(channel) }, router).await;
}

/// Answers one request of `peer`.
pub(super) async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, router: Router) {
    let Peer { address, identity, channel } = peer;
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(identity.clone());
        request.extensions_mut().insert(address);
        request.extensions_mut().insert(channel.clone());
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .keep_alive(false)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%address, %error, "connection ended early"),
        Err(_) => tracing::debug!(%address, "connection took too long"),
    }
}
