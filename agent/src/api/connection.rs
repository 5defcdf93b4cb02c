//! One connection from its handshake to its end, each step with a deadline.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use deadlight_shared::Identity;
use deadlight_shared::enrol::{EXPORTER_LABEL, EXPORTER_LENGTH};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{ConnectionCommon, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

use super::slots::Slot;
use super::stranger::Stranger;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Header and body: whoever writes slowly is gone 9 seconds after the connection began.
const REQUEST_LIMIT: Duration = Duration::from_secs(4);
/// Request, work and answer together; causes alone may take Docker's two seconds.
pub(super) const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// A trust document that revokes as many keys as it may has some 40 KiB as a header.
pub(super) const MAX_HEADER_BYTES: usize = 64 * 1024;

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

impl Peer {
    /// The other end of a connection whose handshake is done; `None`, with a line in the log, when it is nobody.
    pub(super) fn of<T>(tls: &ConnectionCommon<T>, address: SocketAddr) -> Option<Self> {
        let certificate = tls.peer_certificates().and_then(|chain| chain.first());
        let identity = match certificate.map(Identity::of_certificate) {
            Some(Ok(identity)) => identity,
            Some(Err(error)) => {
                tracing::warn!(%address, %error, "a certificate of our CA without an identity");
                return None;
            }
            None => {
                tracing::warn!(%address, "no client certificate");
                return None;
            }
        };
        let mut channel = [0; EXPORTER_LENGTH];
        if let Err(error) = tls.export_keying_material(&mut channel, EXPORTER_LABEL, None) {
            tracing::warn!(%address, %error, "a connection without keying material");
            return None;
        }
        Some(Self { address, identity, channel: Channel(channel) })
    }
}

/// What answers the requests of `peer`; `read_by` says for each until when it is read.
pub(super) fn service(
    peer: Peer,
    router: Router,
    read_by: impl Fn() -> ReadBy + Send + Sync,
) -> impl Service<hyper::Request<Incoming>, Response = Response, Error = Infallible, Future: Send + 'static> {
    service_fn(move |mut request: hyper::Request<Incoming>| {
        let extensions = request.extensions_mut();
        extensions.insert(peer.identity.clone());
        extensions.insert(peer.address);
        extensions.insert(peer.channel.clone());
        extensions.insert(read_by());
        router.clone().oneshot(request)
    })
}

/// Until when the whole request must have come.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadBy(pub(super) Instant);

impl ReadBy {
    /// For a request that begins now.
    pub(super) fn from_now() -> Self {
        Self(Instant::now() + REQUEST_LIMIT)
    }
}

/// The handshake, and what the peer then asks. Before the handshake has shown a certificate, nothing is read as HTTP.
pub(super) async fn serve(stream: TcpStream, address: SocketAddr, tls: Arc<ServerConfig>, router: Router, slot: Slot) {
    let mut stream = match timeout(HANDSHAKE_LIMIT, handshake(stream, tls)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%address, "TLS handshake took too long"),
    };
    let Some(peer) = Peer::of(stream.get_ref().1, address) else { return };
    if let Err(error) = stream.get_mut().0.trust() {
        return tracing::debug!(%address, %error, "connection ended early");
    }
    if slot.prove(&peer.identity) {
        Box::pin(answer(stream, peer, router)).await;
    }
}

async fn handshake(stream: TcpStream, tls: Arc<ServerConfig>) -> io::Result<TlsStream<Stranger>> {
    let stream = Stranger::new(stream)?;
    // TLS and HTTP take memory, and who says nothing gets none; hence the boxes.
    stream.spoken().await?;
    Box::pin(TlsAcceptor::from(tls).accept(stream).into_fallible()).await.map_err(|(error, mut stream)| {
        // A scanner with a wrong certificate has to hear so, and a reset could overtake the alert.
        if is_about_certificate(&error) {
            stream.trust().ok();
        }
        error
    })
}

fn is_about_certificate(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(error, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}

/// Answers one request of `peer`.
pub(super) async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, router: Router) {
    let read_by = ReadBy::from_now();
    let (address, service) = (peer.address, service(peer, router, move || read_by));
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
