//! Pull mode: the node does not listen. It keeps one call to each scanner and answers there what it would answer at its
//! [door](super::server): the scanner asks, over a connection that the agent has dialled.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::backoff::{Backoff, GOOD};
use super::connection::{CONNECTION_LIMIT, MAX_HEADER_BYTES, Peer, service};

const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// A call on which the scanner has asked nothing for so long is dead: a living one asks twice a minute.
const SILENCE: Duration = Duration::from_secs(120);
/// How long what we sent may stay unacknowledged, and how often the kernel asks whether the other end lives.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// After so long each side has to show its certificate again.
const LIFE: Duration = Duration::from_secs(3_600);
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// The calls of this node.
pub struct Caller {
    scanners: Vec<SocketAddr>,
    tls: watch::Receiver<Arc<ClientConfig>>,
    router: Router,
}

/// Why a call ended.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("failed to reach it")]
    Connect(#[source] io::Error),
    #[error("failed to agree on TLS")]
    Tls(#[source] io::Error),
    #[error("it did not answer in time")]
    Late,
    #[error("the call broke")]
    Broken(#[source] hyper::Error),
    #[error("it hung up")]
    HungUp,
    #[error("its certificate gives no identity")]
    Nobody,
}

/// How a call is over.
enum End {
    Broken(CallError),
    /// Our certificate, our trust or the call's age wants another one.
    Outdated,
    Stopped,
}

impl Caller {
    /// A caller of `scanners`. Each call is held to what `tls` says; when that changes, another takes its place.
    pub fn new(scanners: Vec<SocketAddr>, tls: watch::Receiver<Arc<ClientConfig>>, router: Router) -> Self {
        Self { scanners, tls, router }
    }

    /// Keeps calling until `stop` completes, then lets requests under way finish for up to 10 s.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let (stopped, stopping) = watch::channel(false);
        let mut lines = JoinSet::new();
        for scanner in self.scanners {
            let (tls, router) = (self.tls.clone(), self.router.clone());
            lines.spawn(Line { scanner, tls, router, stopping: stopping.clone() }.keep());
        }
        stop.await;
        stopped.send_replace(true);
        let drained = timeout(DRAIN_LIMIT, async { while lines.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("stopped with requests under way");
        }
    }
}

/// The calls to one scanner, one after the other.
struct Line {
    scanner: SocketAddr,
    tls: watch::Receiver<Arc<ClientConfig>>,
    router: Router,
    stopping: watch::Receiver<bool>,
}

impl Line {
    async fn keep(mut self) {
        let (mut backoff, mut told) = (Backoff::default(), String::new());
        loop {
            let began = Instant::now();
            match self.call().await {
                End::Stopped => return,
                End::Outdated => {}
                End::Broken(error) => {
                    let (scanner, text) = (self.scanner, deadlight_shared::hint::causes(&error));
                    if text == told && began.elapsed() < GOOD {
                        tracing::debug!(%scanner, "no call: {text}");
                    } else {
                        tracing::warn!(%scanner, "no call: {text}; calling again and again");
                        told = text;
                    }
                    let pause = backoff.pause(began.elapsed(), fastrand::f64());
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = changed(&mut self.stopping) => return,
                    }
                }
            }
        }
    }

    async fn call(&mut self) -> End {
        let config = Arc::clone(&self.tls.borrow_and_update());
        let dialled = tokio::select! {
            dialled = timeout(DIAL_LIMIT, dial(self.scanner, config)) => dialled.unwrap_or(Err(CallError::Late)),
            () = changed(&mut self.stopping) => return End::Stopped,
        };
        match dialled {
            Ok(stream) => self.answer(stream).await,
            Err(error) => End::Broken(error),
        }
    }

    /// Answers request after request.
    async fn answer(&mut self, stream: TlsStream<TcpStream>) -> End {
        let Some(peer) = Peer::of(stream.get_ref().1, self.scanner) else { return End::Broken(CallError::Nobody) };
        let (scanner, answered) = (self.scanner, Arc::new(AtomicBool::new(false)));
        let answer = service(peer, self.router.clone());
        let limited = service_fn(move |request: hyper::Request<Incoming>| {
            if !answered.swap(true, Ordering::Relaxed) {
                tracing::info!(%scanner, "a call stands");
            }
            let answer = answer.call(request);
            async move {
                let answered: Result<Response, Infallible> = timeout(CONNECTION_LIMIT, answer).await?;
                Ok::<_, tokio::time::error::Elapsed>(answered.unwrap_or_else(|never| match never {}))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Counts between requests too, which makes it the watchdog.
            .header_read_timeout(SILENCE)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), limited);
        tokio::pin!(connection);
        let end = tokio::select! {
            ended = &mut connection => {
                return End::Broken(ended.map_or_else(CallError::Broken, |()| CallError::HungUp));
            }
            () = changed(&mut self.tls) => End::Outdated,
            () = sleep(LIFE) => End::Outdated,
            () = changed(&mut self.stopping) => End::Stopped,
        };
        connection.as_mut().graceful_shutdown();
        match timeout(CONNECTION_LIMIT, connection).await {
            Ok(Err(error)) => tracing::debug!(%scanner, %error, "the former call ended early"),
            Err(_) => tracing::debug!(%scanner, "the former call took too long to end"),
            Ok(Ok(())) => {}
        }
        end
    }
}

async fn dial(scanner: SocketAddr, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, CallError> {
    let stream = TcpStream::connect(scanner).await.map_err(CallError::Connect)?;
    watch_over(&stream).map_err(CallError::Connect)?;
    // The identity is the name.
    let name = ServerName::IpAddress(scanner.ip().into());
    TlsConnector::from(tls).connect(name, stream).await.map_err(CallError::Tls)
}

/// A scanner that is gone without a word is found out by the kernel.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3))
}

/// Comes with the next change; never, when nobody is left to make one.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
