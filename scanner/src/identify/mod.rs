//! What is behind an open TCP port: one handshake, and at most one harmless question.

pub(crate) mod describe;
pub(crate) mod tls;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use deadlight_shared::Port;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::net;
use crate::probe::Outcome;

/// How long a service may take to speak first.
const BANNER: Duration = Duration::from_millis(500);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(1);
/// As much of an answer is read.
const MOST: usize = 16 << 10;
/// Ports on which the client speaks first, and TLS.
const TLS_FIRST: [u16; 14] = [443, 465, 636, 853, 990, 993, 995, 2376, 5671, 6443, 7443, 8443, 8883, 9443];

/// What a look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// What came of the handshake.
    pub outcome: Outcome,
    /// What is behind the port, as far as it says so itself: printable, at most 256 characters.
    pub service: Option<String>,
}

/// Makes a connection within `limit`; with `identify`, listens for a banner, or asks for a page or a
/// certificate, on that same connection.
pub async fn look(address: IpAddr, port: Port, identify: bool, limit: Duration) -> Looked {
    let (asked, stream) = net::connect(address, port, limit).await;
    let service = match stream {
        Some(stream) if identify => service(stream, SocketAddr::new(address, port.number.get())).await,
        _ => None,
    };
    Looked { outcome: asked.outcome, service }
}

async fn service(mut stream: TcpStream, target: SocketAddr) -> Option<String> {
    if TLS_FIRST.contains(&target.port()) {
        return timeout(2 * ANSWER, tls::certificate(stream, target.ip())).await.unwrap_or(None);
    }
    let mut banner = vec![0; 1_024];
    if let Ok(read) = timeout(BANNER, stream.read(&mut banner)).await {
        let length = read.ok()?;
        return describe::banner(banner.get(..length)?);
    }
    let request = format!(
        "GET / HTTP/1.0\r\nHost: {target}\r\nUser-Agent: deadlight-scanner/{}\r\nAccept: */*\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // Cut short or not: what has come is looked at.
    let _ended = timeout(ANSWER, (&mut stream).take(MOST as u64).read_to_end(&mut answer)).await;
    describe::answer(&answer)
}

#[cfg(test)]
mod tests;
