//! The door: how many may stand in it, and a deadline on every step. `axum::serve` has neither.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection;

const MAX_CONNECTIONS: usize = 256;
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// A bound listener that is ready to serve.
pub struct Server {
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
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
}

impl Server {
    /// Listens on `address`. Each connection is held to what `tls` says when it begins.
    pub async fn bind(
        address: SocketAddr,
        tls: watch::Receiver<Arc<ServerConfig>>,
        router: Router,
    ) -> Result<Self, ServerError> {
        let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
        Ok(Self { listener, tls, router })
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
                        let (tls, router) = (Arc::clone(&self.tls.borrow()), self.router.clone());
                        connections.spawn(async move {
                            connection::serve(stream, peer, tls, router).await;
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
