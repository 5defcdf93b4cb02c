//! The accept loop: everybody gets a slot of the [door](super::door), and a line in the log is for a minute of them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use deadlight_shared::wire::Callers;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{interval, timeout};

use super::connection;
use super::slots::Slots;

/// Connections that the kernel holds until they are accepted; it allows no more than `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
const SUMMARY_EVERY: Duration = Duration::from_secs(60);
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// A bound listener that is ready to serve.
pub struct Server {
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    router: Router,
    slots: Slots,
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
    pub fn bind(
        address: SocketAddr,
        tls: watch::Receiver<Arc<ServerConfig>>,
        router: Router,
        slots: Slots,
    ) -> Result<Self, ServerError> {
        let listener = listen(address).map_err(|source| ServerError::Listen { address, source })?;
        Ok(Self { listener, tls, router, slots })
    }

    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Serves until `stop` completes, then lets requests under way finish for up to 10 s.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut summary = interval(SUMMARY_EVERY);
        let mut told = self.slots.callers();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(ended) = connections.join_next() => {
                    self.note(&ended);
                    continue;
                }
                _ = summary.tick() => {
                    told = tell(told, self.slots.callers());
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (slot, eviction) = self.slots.enter(peer.ip());
                    let (tls, router) = (Arc::clone(&self.tls.borrow()), self.router.clone());
                    connections.spawn(eviction.or(connection::serve(stream, peer, tls, router, slot)));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    // Out of descriptors: accepting again at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let drained = timeout(DRAIN_LIMIT, async {
            while let Some(ended) = connections.join_next().await {
                self.note(&ended);
            }
        });
        if drained.await.is_err() {
            tracing::warn!("stopped with requests under way");
        }
        tell(told, self.slots.callers());
    }

    fn note(&self, ended: &Result<(), JoinError>) {
        if ended.as_ref().is_err_and(JoinError::is_panic) {
            self.slots.panicked();
        }
    }
}

/// One line for all who came since `told`.
fn tell(told: Callers, now: Callers) -> Callers {
    let (strangers, evicted, panics) =
        (now.strangers - told.strangers, now.evicted - told.evicted, now.panics - told.panics);
    if panics > 0 {
        tracing::error!(panics, "handlers panicked; the agent went on");
    }
    if evicted > 0 {
        tracing::warn!(strangers, evicted, "more connections than slots since the last such line");
    } else if strangers > 0 {
        tracing::info!(strangers, "connections without a certificate since the last such line");
    }
    now
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the last run to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
