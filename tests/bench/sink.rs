//! A place that alerts are sent to, with its moods.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::Value;

/// One message, as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) at: Instant,
    pub(crate) key: String,
    /// Each, in the words of the sink's kind.
    pub(crate) alerts: Vec<Value>,
    /// Its sink could act on it, whatever it said.
    pub(crate) has_arrived: bool,
    pub(crate) accepted: bool,
}

impl Message {
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.alerts.iter().filter_map(|alert| alert["number"].as_u64())
    }
}

pub(crate) const GOOD: u8 = 0;
/// It answers 500, having done nothing.
pub(crate) const ERROR: u8 = 1;
/// It takes the message and never answers.
pub(crate) const HANG: u8 = 2;
/// It takes the message and closes without an answer.
pub(crate) const CUT: u8 = 3;
/// It closes before it has read anything.
pub(crate) const AWAY: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    OneASecond,
    Moody,
}

/// A place that alerts are sent to.
pub(crate) struct Sink {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Message>>>,
    mood: Arc<AtomicU8>,
}

impl Sink {
    pub(crate) fn start(behaviour: Behaviour) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let sink = Self { address: listener.local_addr()?, heard: Arc::default(), mood: Arc::default() };
        let (heard, mood) = (Arc::clone(&sink.heard), Arc::clone(&sink.mood));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (heard, mood) = (Arc::clone(&heard), mood.load(Ordering::SeqCst));
                // Whoever asked may be gone.
                thread::spawn(move || converse(stream, behaviour, mood, &heard).ok());
            }
        });
        Ok(sink)
    }

    pub(crate) fn mood(&self, mood: u8) {
        self.mood.store(mood, Ordering::SeqCst);
    }

    pub(crate) fn heard(&self) -> Vec<Message> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn block(&self, kind: &str) -> String {
        format!("[[alert]]\nkind = \"{kind}\"\nurl = \"{}\"\n", self.url())
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

fn converse(mut stream: TcpStream, behaviour: Behaviour, mood: u8, heard: &Mutex<Vec<Message>>) -> Result<()> {
    if mood == AWAY {
        return Ok(());
    }
    let (key, body) = read(&stream)?;
    // PagerDuty gets one event a message.
    let alerts = body["alerts"].as_array().cloned().unwrap_or_else(|| vec![body]);
    let now = Instant::now();
    let accepted = {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let last = heard.iter().rev().find(|message| message.accepted).map(|message| message.at);
        let is_early = last.is_some_and(|last| now - last < Duration::from_secs(1));
        let accepted = mood == GOOD && !(behaviour == Behaviour::OneASecond && is_early);
        heard.push(Message { at: now, key, alerts, has_arrived: mood != ERROR, accepted });
        accepted
    };
    let status = match (accepted, mood) {
        (true, _) => "200 OK",
        (false, GOOD) => "429 Too Many Requests\r\nretry-after: 1",
        (false, ERROR) => "500 Internal Server Error",
        (false, HANG) => return stream.read(&mut [0]).map(drop).map_err(Into::into),
        _ => return Ok(()),
    };
    Ok(write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?)
}

/// Its idempotency-key and its JSON.
fn read(stream: &TcpStream) -> Result<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let (mut key, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("idempotency-key: ") {
            value.clone_into(&mut key);
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((key, serde_json::from_slice(&body)?))
}
