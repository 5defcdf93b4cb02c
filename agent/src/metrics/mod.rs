//! The state of health in numbers, for a Prometheus on this host.

mod text;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use deadlight_shared::hint::{self, causes};
use deadlight_shared::own_host;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::TEXT_FORMAT;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::api::Slots;
use crate::identity::Keyring;
use crate::node::{Node, NodeError};

/// Readers at a time, how long one of them may take to ask, and all in all.
const MOST: usize = 8;
const ASKING: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(20);
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// An answer is given again for so long: a look at the kernel runs programs, and whoever is on this host may ask.
const FRESH: Duration = Duration::from_secs(5);
/// Until the address is tried again where somebody else has it.
const PAUSE: Duration = Duration::from_secs(10);

/// Serves the numbers.
pub struct Exporter {
    node: Arc<Node>,
    keyring: Arc<Keyring>,
    slots: Slots,
    last: Mutex<Option<(Instant, Bytes)>>,
}

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
enum NoNumbers {
    #[error("failed to look at the node")]
    Node(#[from] NodeError),
    #[error("failed to write the numbers")]
    Text(#[from] prometheus::Error),
}

impl Exporter {
    /// Of what these know.
    pub fn new(node: Arc<Node>, keyring: Arc<Keyring>, slots: Slots) -> Self {
        Self { node, keyring, slots, last: Mutex::default() }
    }

    /// Serves for ever, on `address`. Where that cannot be listened on, it is tried again and again: nobody who takes the
    /// port keeps the agent from closing others.
    pub async fn serve(self, address: SocketAddr) {
        let listener = listen(address).await;
        tracing::info!(%address, "metrics are served");
        let metrics = Router::new().route("/metrics", get(metrics)).layer(from_fn(guard)).with_state(Arc::new(self));
        let slots = Arc::new(Semaphore::new(MOST));
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let metrics = metrics.clone();
                    tokio::spawn(async move {
                        // Whoever is too slow can come again.
                        let _ended = timeout(LONGEST, answer(stream, metrics)).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!("the metrics: {}", causes(&error));
                    // Out of descriptors: accepting again at once would spin.
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// The numbers of now, or of a moment ago. Those who ask meanwhile wait for one look.
    async fn text(&self) -> Result<Bytes, NoNumbers> {
        let mut last = self.last.lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(text.clone());
        }
        let health = self.node.health().await?;
        let text = Bytes::from(text::encoded(&health, self.keyring.validity(), self.slots.callers())?);
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !told => {
                let hint = "hint: [metrics] listen; `ss -lntp` shows who does";
                tracing::error!(%address, "failed to listen for the metrics: {error}; trying again and again; {hint}");
                told = true;
            }
            Err(error) => tracing::debug!(%address, "failed to listen for the metrics: {error}"),
        }
        sleep(PAUSE).await;
    }
}

async fn answer(stream: TcpStream, metrics: Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(ASKING).keep_alive(false).max_buf_size(MAX_HEADER_BYTES);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(metrics)).await {
        tracing::debug!("the metrics: {}", causes(&error));
    }
}

/// Lets in who asks for this host.
async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(own_host::is_own) {
        return next.run(request).await;
    }
    (StatusCode::MISDIRECTED_REQUEST, "The metrics are at localhost and loopback addresses only.\n").into_response()
}

async fn metrics(State(exporter): State<Arc<Exporter>>) -> Response {
    match exporter.text().await {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::warn!("the metrics: {}", hint::line(&error));
            (StatusCode::SERVICE_UNAVAILABLE, "The node cannot be looked at; the log says why.\n").into_response()
        }
    }
}
