//! What the words go over, and how a server is asked for TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use lettre::transport::smtp::client::AsyncTokioStream;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf,
};
use tokio::net::TcpStream;

use super::super::SinkError;
use super::super::error::Step;

/// No server needs to say more in one conversation.
const MOST: u64 = 64 * 1024;

/// A connection over which the server has not spoken yet.
pub(super) fn fresh<S: Stream>(stream: S, peer: SocketAddr) -> Box<dyn AsyncTokioStream> {
    Box::new(Wire { stream, peer, greeting: b"", left: MOST })
}

/// One over which it has greeted us before TLS.
pub(super) fn greeted<S: Stream>(stream: S, peer: SocketAddr) -> Box<dyn AsyncTokioStream> {
    Box::new(Wire { stream, peer, greeting: b"220 \r\n", left: MOST })
}

/// Brings the server to where it waits for TLS. What it says until then may be anybody's, and none of it counts
/// afterwards.
pub(super) async fn ask_for_tls(stream: &mut TcpStream) -> Result<(), SinkError> {
    let mut server = BufReader::new(stream).take(MOST);
    expect(&mut server, 220).await?;
    tell(&mut server, "EHLO [127.0.0.1]\r\n").await?;
    let offers = expect(&mut server, 250).await?;
    if !offers.iter().any(|offer| offer.eq_ignore_ascii_case("STARTTLS")) {
        return Err(SinkError::NoStartTls);
    }
    tell(&mut server, "STARTTLS\r\n").await?;
    expect(&mut server, 220).await?;
    match server.get_ref().buffer() {
        [] => Ok(()),
        _ => Err(SinkError::Mail("somebody speaks between STARTTLS and TLS".to_owned())),
    }
}

type Server<'a> = tokio::io::Take<BufReader<&'a mut TcpStream>>;

async fn tell(server: &mut Server<'_>, words: &str) -> Result<(), SinkError> {
    server.get_mut().get_mut().write_all(words.as_bytes()).await.map_err(broken)
}

/// The lines of a reply with `code`, without it.
async fn expect(server: &mut Server<'_>, code: u16) -> Result<Vec<String>, SinkError> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        server.read_until(b'\n', &mut line).await.map_err(broken)?;
        let line = String::from_utf8_lossy(&line);
        let Some((said, rest)) = line.strip_suffix('\n').map(str::trim_end).and_then(|line| line.split_at_checked(3))
        else {
            return Err(SinkError::Mail("it breaks off, or is no mail server".to_owned()));
        };
        let Ok(said) = said.parse::<u16>() else {
            return Err(SinkError::Mail(format!("it is no mail server: {line}")));
        };
        lines.push(rest.get(1..).unwrap_or_default().to_owned());
        match (rest.starts_with('-'), said == code) {
            (true, _) => {}
            (false, true) => return Ok(lines),
            (false, false) => {
                return Err(SinkError::MailSaid { step: Step::Connection, code: said, said: lines.join(" ") });
            }
        }
    }
}

fn broken(error: io::Error) -> SinkError {
    SinkError::Mail(error.to_string())
}

/// Anything that bytes go over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug + 'static> Stream for S {}

/// A stream that says `greeting` first, and ends when the server has said too much.
#[derive(Debug)]
struct Wire<S> {
    stream: S,
    peer: SocketAddr,
    greeting: &'static [u8],
    left: u64,
}

impl<S: Stream> AsyncTokioStream for Wire<S> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl<S: Stream> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.greeting.is_empty() {
            let (now, later) = self.greeting.split_at(self.greeting.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.greeting = later;
            return Poll::Ready(Ok(()));
        }
        if self.left == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = u64::try_from(buffer.filled().len() - before).unwrap_or(u64::MAX);
        self.left = self.left.saturating_sub(read);
        polled
    }
}

impl<S: Stream> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
