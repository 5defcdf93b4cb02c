//! The door: TLS with a required client certificate, a deadline on every step, a bound on how many
//! may stand in it. `axum::serve` has none of these.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use deadlight_shared::Identity;
use deadlight_shared::tls::{Credentials, TlsError};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

const MAX_CONNECTIONS: usize = 256;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// Header, body, work and answer together; causes alone may take Docker's two seconds.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// A bound listener that is ready to serve.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("failed to listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("failed to set up TLS")]
    Tls(#[from] TlsError),
}

impl Server {
    /// Listens on `address`.
    pub async fn bind(address: SocketAddr, credentials: &Credentials, router: Router) -> Result<Self, ServerError> {
        let config = credentials.server_config()?;
        let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), router })
    }

    /// Serves until `stop` completes, then lets requests under way finish for up to 10 s.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => match Arc::clone(&slots).try_acquire_owned() {
                    Ok(slot) => {
                        let (acceptor, router) = (self.acceptor.clone(), self.router.clone());
                        connections.spawn(async move {
                            serve_one(stream, peer, acceptor, router).await;
                            drop(slot);
                        });
                    }
                    Err(_) => tracing::warn!(%peer, "connection refused: all {MAX_CONNECTIONS} slots are taken"),
                },
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    // Out of descriptors: accepting again at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let drained = timeout(DRAIN_LIMIT, async { while connections.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("stopped with requests under way");
        }
    }
}

async fn serve_one(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, router: Router) {
    let stream = match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = match certificate.map(Identity::of_certificate) {
        Some(Ok(identity)) => identity,
        Some(Err(error)) => return tracing::warn!(%peer, %error, "a certificate of our CA without an identity"),
        None => return tracing::warn!(%peer, "no client certificate"),
    };
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(identity.clone());
        request.extensions_mut().insert(peer);
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
        Ok(Err(error)) => tracing::debug!(%peer, %error, "connection ended early"),
        Err(_) => tracing::debug!(%peer, "connection took too long"),
    }
}
