//! A process that does one thing for the agent, with a privilege that the agent then need not have: it is asked over a
//! Unix socket, by root and by the agent's user alone.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Each may hold twice the longest answer. An agent asks for one or two things at a time, and hears events.
const MAX_CONNECTIONS: usize = 4;

/// A listening socket that somebody else has opened, such as systemd.
#[derive(Debug)]
pub struct Helper {
    listener: UnixListener,
    /// Who may ask besides root.
    owner: u32,
}

/// Why a helper cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// There is no other way to it.
    #[error("standard input is no listening Unix socket with a file")]
    Stdin(#[source] io::Error),
}

impl Helper {
    /// On the socket that is standard input. The owner of its file may ask, and root.
    pub fn on_stdin() -> Result<Self, HelperError> {
        let open = || {
            let listener = net::UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
            if !rustix::net::sockopt::socket_acceptconn(&listener)? {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let file = listener.local_addr()?.as_pathname().map(fs::metadata).ok_or(io::ErrorKind::InvalidInput)??;
            listener.set_nonblocking(true)?;
            Ok(Self { listener: UnixListener::from_std(listener)?, owner: file.uid() })
        };
        open().map_err(HelperError::Stdin)
    }

    /// Answers each connection by `answer`, for ever.
    pub async fn run<F>(self, answer: impl Fn(UnixStream) -> F) -> !
    where
        F: Future<Output = ()> + Send + 'static,
    {
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
                    let answered = answer(stream);
                    tokio::spawn(async move {
                        answered.await;
                        drop(slot);
                    });
                }
                Ok(uid) => tracing::warn!(uid, "refused: neither root nor the owner of the socket"),
                Err(error) => tracing::warn!(%error, "refused: nobody knows who it is"),
            }
        }
    }
}
