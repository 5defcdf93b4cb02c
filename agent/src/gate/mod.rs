//! What stands between everybody who asks Docker and Docker's socket, which is as good as root: it passes the
//! questions that the agent has, word for word, and answers that are bounded in size and time. The agent goes
//! through one in its own process whatever socket it is told to use; with systemd a second one, in a process
//! that no network reaches, is the only one that can open Docker's.

mod lines;
mod permit;

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::TryStreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, Full, StreamBody};
use hyper::body::{Body as _, Bytes, Frame, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use lines::Lines;
use permit::{Form, Question, permitted};

/// How long a whole answer may take.
pub const LIMIT: Duration = Duration::from_secs(2);
/// How long a whole answer may be: some thousand tasks of a swarm.
const MAX_BYTES: usize = 16 << 20;
const PIPE_BYTES: usize = 64 << 10;

type Body = BoxBody<Bytes, GateError>;

/// The way to one engine.
#[derive(Debug, Clone)]
pub struct Gate {
    docker: PathBuf,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum GateError {
    #[error("not one of the questions that pass here")]
    Refused,
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    #[error("not HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {} s", LIMIT.as_secs())]
    Slow,
    #[error("it offers another protocol")]
    Protocol,
    #[error("the answer breaks off: {0}")]
    Broken(hyper::Error),
    #[error("the answer is longer than {} MiB", MAX_BYTES >> 20)]
    TooLong,
    #[error("the events break off: {0}")]
    Events(#[from] lines::TooLong),
}

impl Gate {
    /// Asks the engine behind the socket `docker`; nothing is opened yet.
    pub fn new(docker: PathBuf) -> Self {
        Self { docker }
    }

    /// Puts one question without leaving this process.
    pub async fn put<B>(self, mut request: Request<B>) -> hyper::Result<Response<Incoming>>
    where
        B: hyper::body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(self.serve(far));
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(near)).await?;
        // What goes wrong on it, the answer tells.
        tokio::spawn(async { connection.await.ok() });
        let target = request.uri().path_and_query().cloned().map(hyper::Uri::from);
        *request.uri_mut() = target.unwrap_or_default();
        sender.send_request(request).await
    }

    /// Answers the one question that comes over `stream`.
    pub async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(async |request| Ok::<_, Infallible>(self.answer(&request).await));
        let connection = server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(LIMIT)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a question to Docker ended early");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        // Nothing of the request goes on: the engine is sent the text of the list.
        let asked = permitted(request.method().as_str(), &request.uri().to_string())
            .filter(|_| request.body().is_end_stream() && !request.headers().contains_key(header::UPGRADE));
        let answer = match asked {
            None => Err(GateError::Refused),
            Some(question) => match question.form {
                Form::Whole => timeout(LIMIT, self.whole(question)).await.unwrap_or(Err(GateError::Slow)),
                Form::Events => self.events(question).await,
            },
        };
        answer.unwrap_or_else(|error| {
            let status = match error {
                GateError::Refused => StatusCode::FORBIDDEN,
                _ => StatusCode::BAD_GATEWAY,
            };
            tracing::debug!(%error, uri = %request.uri(), "Docker is not asked, or does not answer");
            // As Docker words its own refusals.
            let message = serde_json::json!({ "message": error.to_string() }).to_string();
            response(status, Full::from(message).map_err(|never| match never {}).boxed())
        })
    }

    async fn whole(&self, question: &Question) -> Result<Response<Body>, GateError> {
        let (answer, _connection) = self.ask(question).await?;
        let (head, mut body) = answer.into_parts();
        // Not by `collect`: it keeps each piece by itself, and there may be millions.
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.map_err(GateError::Broken)?.into_data().unwrap_or_default();
            if bytes.len() + piece.len() > MAX_BYTES {
                return Err(GateError::TooLong);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(response(head.status, Full::from(bytes).map_err(|never| match never {}).boxed()))
    }

    /// Goes on for as long as both sides like; holds one line at most.
    async fn events(&self, question: &Question) -> Result<Response<Body>, GateError> {
        let (answer, connection) = timeout(LIMIT, self.ask(question)).await.map_err(|_| GateError::Slow)??;
        let (head, body) = answer.into_parts();
        let mut lines = Lines::default();
        let chunks = TryStreamExt::map_err(BodyStream::new(body), GateError::from);
        let whole_lines = chunks.and_then(move |frame| {
            // It lives as long as its answer is read.
            let _connection = &connection;
            let passed = frame.into_data().map_or(Ok(Bytes::new()), |chunk: Bytes| lines.push(&chunk));
            std::future::ready(passed.map(Frame::data).map_err(GateError::from))
        });
        Ok(response(head.status, BodyExt::boxed(StreamBody::new(whole_lines))))
    }

    async fn ask(&self, question: &Question) -> Result<(Response<Incoming>, JoinSet<hyper::Result<()>>), GateError> {
        let stream = UnixStream::connect(&self.docker).await?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = hyper::Uri::from_static(question.target);
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("docker"));
        let answer = sender.send_request(request).await?;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => Err(GateError::Protocol),
            _ => Ok((answer, driver)),
        }
    }
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests;
