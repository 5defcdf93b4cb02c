//! One datagram, and what comes back.

use std::time::Duration;

use socket2::Socket;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::probe::{Outcome, failed_here, refused_by_network};

/// Sends `payload` over the connected `socket` and waits at most `limit`. The kernel hands out
/// only what the target sent, and its ICMP messages as errors.
pub(super) async fn outcome(socket: Socket, payload: &[u8], limit: Duration) -> Outcome {
    let socket = match UdpSocket::from_std(socket.into()) {
        Ok(socket) => socket,
        Err(error) => return failed_here(&error),
    };
    if let Err(error) = socket.send(payload).await {
        return failed_here(&error);
    }
    match timeout(limit, socket.recv(&mut [0; 1])).await {
        Err(_) => Outcome::Silent,
        Ok(Ok(_)) => Outcome::Answered { own_host: false },
        Ok(Err(error)) => refused_by_network(&error),
    }
}
