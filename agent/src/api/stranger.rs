//! The socket of somebody who has not proven yet who he is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Of a scanner's handshake the agent reads some 2 KiB. rustls alone would gather 64 KiB of a hello that never ends.
const MAX_HANDSHAKE_BYTES: usize = 16 * 1024;

/// A connection of which no more than a handshake is read, and whose end is a reset: where a flood was shown out, no
/// socket of the kernel's waits, and no entry of its connection tracking for minutes. [`Self::trust`] ends both.
#[derive(Debug)]
pub(super) struct Stranger {
    stream: TcpStream,
    /// Bytes that may still come; none is as many as there are.
    left: Option<usize>,
}

impl Stranger {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(Self { stream, left: Some(MAX_HANDSHAKE_BYTES) })
    }

    /// Comes when something was said, or the end.
    pub(super) async fn spoken(&self) -> io::Result<()> {
        // `readable` would say so before anything was.
        self.stream.peek(&mut [0]).await.map(drop)
    }

    /// The handshake is over: whatever is said now is read, and what was answered arrives.
    pub(super) fn trust(&mut self) -> io::Result<()> {
        self.left = None;
        SockRef::from(&self.stream).set_linger(None)
    }
}

impl AsyncRead for Stranger {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if let Some(left) = &mut this.left {
            match left.checked_sub(buffer.filled().len() - before) {
                Some(rest) => *left = rest,
                None => {
                    // With an error nothing is read.
                    buffer.set_filled(before);
                    return Poll::Ready(Err(io::Error::other("the handshake is too long")));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stranger {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn met() -> (Stranger, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        (Stranger::new(stream).unwrap(), other)
    }

    #[tokio::test]
    async fn no_more_than_a_handshake_is_read_of_a_stranger() {
        for (length, is_trusted) in
            [(MAX_HANDSHAKE_BYTES, false), (MAX_HANDSHAKE_BYTES + 1, false), (2 * MAX_HANDSHAKE_BYTES, true)]
        {
            let (mut stranger, mut other) = met().await;
            if is_trusted {
                stranger.trust().unwrap();
            }
            other.write_all(&vec![22; length]).await.unwrap();
            other.shutdown().await.unwrap();
            let mut heard = Vec::new();
            let read = stranger.read_to_end(&mut heard).await;
            assert_eq!(read.is_ok(), length <= MAX_HANDSHAKE_BYTES || is_trusted, "{length}");
        }
    }

    #[tokio::test]
    async fn nothing_is_spoken_before_the_first_byte() {
        let (stranger, mut other) = met().await;
        let mut spoken = std::pin::pin!(stranger.spoken());
        // However often the runtime looks at the socket meanwhile.
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(spoken.as_mut().now_or_never().is_none());
        }
        other.write_all(b"x").await.unwrap();
        spoken.await.unwrap();
        let (stranger, other) = met().await;
        drop(other);
        stranger.spoken().await.unwrap();
    }

    #[tokio::test]
    async fn the_end_is_a_reset_until_the_handshake_is_done() {
        for is_trusted in [false, true] {
            let (mut stranger, mut other) = met().await;
            stranger.write_all(b"alert").await.unwrap();
            if is_trusted {
                stranger.trust().unwrap();
            }
            drop(stranger);
            let mut heard = [0; 5];
            other.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"alert", "what was said is heard all the same");
            let end = other.read(&mut heard).await.map_err(|error| error.kind());
            assert_eq!(end, if is_trusted { Ok(0) } else { Err(io::ErrorKind::ConnectionReset) });
        }
    }
}
