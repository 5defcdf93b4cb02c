//! An HTTP connection to an agent, whoever has dialled it.

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use deadlight_shared::trust::TRUST_HEADER;
use deadlight_shared::wire::MAX_ANSWER;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::header::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// What is asked of an agent.
#[derive(Debug, Clone)]
pub struct Ask {
    /// How.
    pub method: Method,
    /// What.
    pub path: Cow<'static, str>,
    /// JSON, if there is a body.
    pub body: Option<Bytes>,
    /// The document that says whom to trust, if there is one.
    pub trust: Option<HeaderValue>,
    /// How long the answer may take.
    pub limit: Duration,
}

/// What an agent answers.
#[derive(Debug)]
pub struct Answer {
    /// Whether it did it.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, of at most [`MAX_ANSWER`] bytes.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The connection ended, or was of no use any more.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    /// The answer took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The answer is longer than any that we want.
    #[error("the answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
}

/// An open connection. One thing is asked at a time.
#[derive(Debug)]
pub struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// Without an answer to the last question, the next would get it.
    is_spoilt: bool,
}

impl Line {
    /// Speaks HTTP on `stream`. The future has to run for as long as the line is used, and ends with the connection.
    pub async fn over<S>(stream: S) -> Result<(Self, impl Future<Output = ()> + Send + use<S>), LineError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driven = async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an agent ended early");
            }
        };
        Ok((Self { sender, is_spoilt: false }, driven))
    }

    /// Asks, and waits for the whole answer.
    pub async fn ask(&mut self, ask: &Ask) -> Result<Answer, LineError> {
        if std::mem::replace(&mut self.is_spoilt, true) {
            return Err(LineError::Broken("an earlier question has no answer".into()));
        }
        let answer = timeout(ask.limit, self.try_ask(ask)).await.unwrap_or(Err(LineError::Late(ask.limit)))?;
        self.is_spoilt = false;
        Ok(answer)
    }

    async fn try_ask(&mut self, ask: &Ask) -> Result<Answer, LineError> {
        let mut request = Request::builder().method(&ask.method).uri(ask.path.as_ref()).header(HOST, "agent");
        if ask.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(trust) = &ask.trust {
            request = request.header(TRUST_HEADER, trust);
        }
        let request = request.body(Full::from(ask.body.clone().unwrap_or_default())).map_err(broken)?;
        self.sender.ready().await.map_err(broken)?;
        let response = self.sender.send_request(request).await.map_err(broken)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| {
            match error.is::<LengthLimitError>() {
                true => LineError::TooLong,
                false => LineError::Broken(error),
            }
        })?;
        Ok(Answer { status, headers, body: body.to_bytes() })
    }
}

fn broken(error: impl Into<Box<dyn Error + Send + Sync>>) -> LineError {
    LineError::Broken(error.into())
}
