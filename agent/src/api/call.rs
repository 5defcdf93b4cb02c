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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::backoff::{Backoff, GOOD};
use super::connection::{CONNECTION_LIMIT, MAX_HEADER_BYTES, Peer, ReadBy, service};

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
#[derive(Debug)]
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
            Ok(stream) => match Peer::of(stream.get_ref().1, self.scanner) {
                Some(peer) => self.answer(stream, peer).await,
                None => End::Broken(CallError::Nobody),
            },
            Err(error) => End::Broken(error),
        }
    }

    /// Answers request after request.
    async fn answer(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer) -> End {
        let (scanner, answered) = (self.scanner, Arc::new(AtomicBool::new(false)));
        let answer = service(peer, self.router.clone(), ReadBy::from_now);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Channel;
    use axum::http::StatusCode;
    use axum::routing::get;
    use deadlight_shared::Identity;
    use rustls::RootCertStore;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: agent\r\n\r\n";

    /// A call as it stands, and the scanner's end of it.
    struct Standing {
        scanner: DuplexStream,
        end: JoinHandle<End>,
        tls: watch::Sender<Arc<ClientConfig>>,
        stop: watch::Sender<bool>,
        /// A request has come.
        begun: Arc<Notify>,
        /// An answer is given for each of these.
        work: Arc<Notify>,
    }

    impl Standing {
        fn new() -> Self {
            let (ours, scanner) = duplex(64 * 1024);
            let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            let (tls, configs) = watch::channel(Arc::new(config));
            let (stop, stopping) = watch::channel(false);
            let [begun, work] = std::array::from_fn(|_| Arc::new(Notify::new()));
            let (beginning, working) = (Arc::clone(&begun), Arc::clone(&work));
            let router = Router::new().route(
                "/",
                get(async move || {
                    beginning.notify_one();
                    working.notified().await;
                    StatusCode::NO_CONTENT
                }),
            );
            let address = "203.0.113.5:7444".parse().unwrap();
            let identity = Identity::Scanner("office-a".parse().unwrap());
            let peer = Peer { address, identity, channel: Channel([0; 32]) };
            let mut line = Line { scanner: address, tls: configs, router, stopping };
            let end = tokio::spawn(async move { line.answer(ours, peer).await });
            Self { scanner, end, tls, stop, begun, work }
        }

        async fn ask(&mut self) {
            self.scanner.write_all(REQUEST).await.unwrap();
        }

        /// The head of the next answer; empty at the end of the call.
        async fn hear(&mut self) -> String {
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n") {
                match self.scanner.read_u8().await {
                    Ok(byte) => heard.push(byte),
                    Err(_) => break,
                }
            }
            String::from_utf8(heard).unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_call_is_broken_and_one_that_is_asked_is_not() {
        let mut call = Standing::new();
        for _ in 0..5 {
            sleep(SILENCE - Duration::from_secs(1)).await;
            call.ask().await;
            call.work.notify_one();
            assert!(call.hear().await.starts_with("HTTP/1.1 204"));
        }
        let silent = Instant::now();
        assert!(matches!(call.end.await.unwrap(), End::Broken(CallError::Broken(_))));
        assert_eq!(silent.elapsed().as_secs(), SILENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn new_certificates_end_a_call_after_the_request_under_way() {
        let mut call = Standing::new();
        call.ask().await;
        call.begun.notified().await;
        call.tls.send_modify(|_| {});
        // Whoever can do anything has done it when time goes on.
        sleep(Duration::from_millis(1)).await;
        assert!(!call.end.is_finished(), "a request is under way");
        call.work.notify_one();
        let answer = call.hear().await;
        assert!(answer.starts_with("HTTP/1.1 204") && answer.contains("connection: close"), "{answer}");
        assert!(matches!(call.end.await.unwrap(), End::Outdated));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_once_when_it_is_idle() {
        for stop in [true, false] {
            let mut call = Standing::new();
            call.ask().await;
            call.work.notify_one();
            call.hear().await;
            if stop {
                call.stop.send_replace(true);
                assert_eq!(call.hear().await, "");
                assert!(matches!(call.end.await.unwrap(), End::Stopped));
            } else {
                drop(call.scanner);
                assert!(matches!(call.end.await.unwrap(), End::Broken(CallError::HungUp)));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_side_shows_its_certificate_again_after_an_hour() {
        let mut call = Standing::new();
        let began = Instant::now();
        let pause = Duration::from_secs(31);
        while call.scanner.write_all(REQUEST).await.is_ok() {
            call.work.notify_one();
            call.hear().await;
            sleep(pause).await;
        }
        assert!((LIFE..LIFE + pause).contains(&began.elapsed()));
        assert!(matches!(call.end.await.unwrap(), End::Outdated));
    }
}
