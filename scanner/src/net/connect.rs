//! One TCP handshake by the kernel.

use std::time::Duration;

use socket2::Socket;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::probe::{Outcome, failed_here, refused_by_network};

/// Waits at most `limit` for the handshake of `socket`. Dropping the connection ends it with FIN; an
/// attempt that was not answered is closed silently.
pub(super) async fn outcome(socket: Socket, limit: Duration) -> (Outcome, Option<TcpStream>) {
    let stream = match TcpStream::from_std(socket.into()) {
        Ok(stream) => stream,
        Err(error) => return (failed_here(&error), None),
    };
    let outcome = match timeout(limit, stream.writable()).await {
        Err(_) => Outcome::Silent,
        Ok(Err(error)) => failed_here(&error),
        Ok(Ok(())) => match stream.take_error() {
            Ok(None) => return (Outcome::Answered { own_host: false }, Some(stream)),
            Ok(Some(error)) => refused_by_network(&error),
            Err(error) => failed_here(&error),
        },
    };
    (outcome, None)
}
