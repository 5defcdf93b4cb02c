//! A Docker socket that says what a story wants to hear, or nothing, or nonsense.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
};

use anyhow::{Context, Result};
use axum::{Router, http::Uri, response::IntoResponse};
use serde_json::Value;
use tokio::runtime::Runtime;

/// An engine that only answers; ends when dropped.
#[derive(Debug)]
pub struct FakeDocker {
    _runtime: Option<Runtime>,
}

impl FakeDocker {
    /// Serves each path (without the `/v1.41` that clients put before it) with its JSON; anything else is a 404.
    pub fn serving(socket: &Path, answers: BTreeMap<&'static str, Value>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(socket) }).context("listen")?;
        let service = Router::new().fallback(move |uri: Uri| {
            let answer = answers.get(unversioned(uri.path())).map(Value::to_string);
            async move {
                match answer {
                    Some(json) => ([("content-type", "application/json")], json).into_response(),
                    None => axum::http::StatusCode::NOT_FOUND.into_response(),
                }
            }
        });
        runtime.spawn(async move { axum::serve(listener, service).await });
        Ok(Self { _runtime: Some(runtime) })
    }

    /// Lets clients connect into its backlog and never says a word.
    pub fn hung(socket: &Path) -> Result<UnixListener> {
        Ok(UnixListener::bind(socket)?)
    }

    /// Answers every connection with something that is not HTTP.
    pub fn garbage(socket: &Path) -> Result<Self> {
        Self::saying(socket, |stream| stream.write_all(b"\x00\xffnot http\r\n\r\n"))
    }

    /// Begins a list on every connection, and goes on with `piece` for as long as the client listens.
    pub fn endless(socket: &Path, piece: &'static [u8]) -> Result<Self> {
        Self::saying(socket, move |stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[")?;
            loop {
                stream.write_all(piece)?;
            }
        })
    }

    /// Whether a client listens to the end is its own affair.
    fn saying(socket: &Path, say: impl Fn(&mut UnixStream) -> io::Result<()> + Clone + Send + 'static) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let say = say.clone();
                thread::spawn(move || say(&mut stream));
            }
        });
        Ok(Self { _runtime: None })
    }
}

fn unversioned(path: &str) -> &str {
    match path.strip_prefix("/v").and_then(|rest| rest.find('/').map(|at| &rest[at..])) {
        Some(rest) if path[2..].starts_with(|it: char| it.is_ascii_digit()) => rest,
        _ => path,
    }
}
