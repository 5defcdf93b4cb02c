//! The page, the API and the metrics: what is remembered, for those who look. Nothing can be changed here.

mod access;
mod api;
mod metrics;
mod pages;
mod picture;
mod words;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{self, AUTHORIZATION, CONNECTION, HOST, HeaderName, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use deadlight_shared::Name;
use deadlight_shared::hint::{self, causes};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::config::{Config, WebConfig};
use crate::store::{Database, DatabaseError};
use access::{Access, Refusal};

/// Readers at a time, and how long one of them may take to ask, and to read the answer.
const MOST: usize = 64;
const ASKING: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
/// Sweeps that are listed.
const SWEEPS: u32 = 100;
/// A word that can be guessed is none.
const SHORTEST_TOKEN: usize = 16;

/// No script, nothing from elsewhere, and nobody who frames it.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The address cannot be listened on.
    #[error("failed to listen on {address} for the page")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The token cannot be read.
    #[error("failed to read the token in {path}")]
    Token {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The token can be guessed.
    #[error("the token in {path} has less than {SHORTEST_TOKEN} characters")]
    ShortToken {
        /// The file.
        path: String,
    },
}

/// What every answer is made of.
struct Site {
    web: WebConfig,
    database: Arc<Database>,
    vantage: Name,
    /// The configuration that is in force now.
    config: watch::Receiver<Arc<Config>>,
}

/// A page that listens already and does not answer yet.
pub struct Page {
    listener: TcpListener,
    router: Router,
}

impl Page {
    /// Listens where `web` says. What it shows follows `config`, and comes from `database`.
    pub async fn open(
        web: &WebConfig,
        config: watch::Receiver<Arc<Config>>,
        database: Arc<Database>,
    ) -> Result<Self, WebError> {
        check(web)?;
        let address = web.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| WebError::Listen { address, source })?;
        let vantage = config.borrow().vantage.clone();
        let site = Arc::new(Site { web: web.clone(), database, vantage, config });
        Ok(Self { listener, router: router(site) })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers for ever.
    pub async fn serve(self) {
        let slots = Arc::new(Semaphore::new(MOST));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let router = self.router.clone();
                    tokio::spawn(async move {
                        // Whoever is too slow can come again.
                        let _ended = timeout(LONGEST, answer(stream, router)).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors: others have to end first.
                    tracing::warn!("the page: {}", causes(&error));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(ASKING);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await {
        tracing::debug!("the page: {}", causes(&error));
    }
}

fn router(site: Arc<Site>) -> Router {
    let router = Router::new()
        .route("/", get(pages::overview))
        .route("/nodes", get(pages::nodes))
        .route("/findings", get(pages::findings))
        .route("/findings/{id}", get(pages::finding))
        .route("/sweeps", get(pages::sweeps))
        .route("/agents", get(pages::agents))
        .route("/allowlist", get(pages::allowlist))
        .route("/style.css", get(pages::style))
        .route("/metrics", get(metrics::metrics))
        .nest("/api", api::router())
        .fallback(async || NoAnswer::Nothing);
    router.layer(from_fn_with_state(Arc::clone(&site), guard)).with_state(site)
}

/// Lets in who may look, and puts on every answer what browsers have to know.
async fn guard(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let mut response = match refused(&site.web, &request) {
        None => next.run(request).await,
        Some(mut response) => {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    response.headers_mut().extend(HEADERS);
    response
}

/// What is said to who may not look.
fn refused(web: &WebConfig, request: &Request) -> Option<Response> {
    let header = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    // Read each time: a token that got known can be changed without a restart.
    let admitted = match access(web) {
        Ok(access) => access.admit(header(HOST), header(AUTHORIZATION)),
        Err(error) => {
            tracing::error!("the page: {}", hint::line(&error));
            return Some((StatusCode::SERVICE_UNAVAILABLE, "The token cannot be read.\n").into_response());
        }
    };
    Some(match admitted.err()? {
        Refusal::Host => {
            (StatusCode::MISDIRECTED_REQUEST, "This page answers to localhost and loopback addresses only.\n")
                .into_response()
        }
        Refusal::Token => {
            let ask =
                [(WWW_AUTHENTICATE, "Basic realm=\"Deadlight: any user, the token as password\", charset=\"UTF-8\"")];
            (StatusCode::UNAUTHORIZED, ask, "The token is missing or wrong.\n").into_response()
        }
    })
}

/// Whether the page can be shown as `web` has it.
pub fn check(web: &WebConfig) -> Result<(), WebError> {
    access(web).map(drop)
}

fn access(web: &WebConfig) -> Result<Access, WebError> {
    Ok(match &web.token {
        None => Access::Local,
        Some(path) => Access::Token(token(path)?),
    })
}

fn token(path: &Path) -> Result<String, WebError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| WebError::Token { path: shown.clone(), source })?;
    match text.trim() {
        token if token.len() < SHORTEST_TOKEN => Err(WebError::ShortToken { path: shown }),
        token => Ok(token.to_owned()),
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("there is nothing at this address")]
    Nothing,
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("failed to make a page")]
    Page(#[from] askama::Error),
    #[error("failed to write the metrics")]
    Metrics(#[from] prometheus::Error),
}

impl IntoResponse for NoAnswer {
    /// The reason is in the log, with names that are nobody's business.
    fn into_response(self) -> Response {
        let (status, text) = match &self {
            Self::Nothing => return (StatusCode::NOT_FOUND, "There is nothing here.\n").into_response(),
            Self::Database(_) => (StatusCode::SERVICE_UNAVAILABLE, "The database cannot be read at the moment.\n"),
            Self::Page(_) | Self::Metrics(_) => (StatusCode::INTERNAL_SERVER_ERROR, "This cannot be shown.\n"),
        };
        tracing::warn!("the page: {}", hint::line(&self));
        (status, text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn the_token_is_that_of_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let web = WebConfig { listen: "127.0.0.1:0".parse().unwrap(), token: Some(path.clone()) };
        let status = |token: &str| {
            let request = Request::builder().header(AUTHORIZATION, format!("Bearer {token}"));
            refused(&web, &request.body(Body::empty()).unwrap()).map(|response| response.status())
        };
        let tokens = ["an-open-sesame-of-many-letters", "another-sesame-of-many-letters"];
        assert_eq!(tokens.map(status), [Some(StatusCode::SERVICE_UNAVAILABLE); 2], "there is no file");
        for (index, token) in tokens.into_iter().enumerate() {
            std::fs::write(&path, format!("{token}\n")).unwrap();
            let mut wanted = [Some(StatusCode::UNAUTHORIZED); 2];
            wanted[index] = None;
            assert_eq!(tokens.map(status), wanted);
        }
        std::fs::write(&path, "short").unwrap();
        assert_eq!(status("short"), Some(StatusCode::SERVICE_UNAVAILABLE), "it can be guessed");
    }
}
