//! The gate as a process of its own: who may come in.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::Gate;

/// Each may hold an answer; one agent asks for a few things at a time.
const MAX_CONNECTIONS: usize = 8;

/// A listening socket that somebody else has opened, such as systemd.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    /// Who may come in besides root.
    owner: u32,
}

/// Why the gate cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// No use without one.
    #[error("standard input is no listening Unix socket with a file")]
    Stdin(#[source] io::Error),
}

impl Door {
    /// The socket that is standard input. Its file's owner may come in, and root.
    pub fn from_stdin() -> Result<Self, DoorError> {
        let open = || {
            let listener = net::UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
            if !rustix::net::sockopt::socket_acceptconn(&listener)? {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let file = listener.local_addr()?.as_pathname().map(fs::metadata).ok_or(io::ErrorKind::InvalidInput)??;
            listener.set_nonblocking(true)?;
            Ok(Self { listener: UnixListener::from_std(listener)?, owner: file.uid() })
        };
        open().map_err(DoorError::Stdin)
    }

    /// Serves for ever.
    pub async fn run(self, gate: Gate) -> ! {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await;
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    // Out of descriptors: accepting again at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match stream.peer_cred().map(|peer| peer.uid()) {
                Ok(uid) if uid == 0 || uid == self.owner => {
                    let gate = gate.clone();
                    tokio::spawn(async move {
                        gate.serve(stream).await;
                        drop(slot);
                    });
                }
                Ok(uid) => tracing::warn!(uid, "refused: neither root nor the owner of the socket"),
                Err(error) => tracing::warn!(%error, "refused: nobody knows who it is"),
            }
        }
    }
}
