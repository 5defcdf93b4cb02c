//! A place that alerts are sent to, and that answers as a test wants.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// One message: its path, its header lines and its JSON.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) path: String,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Value,
}

/// Listens until the test is over.
pub(crate) struct Hook {
    pub(crate) address: SocketAddr,
    heard: Arc<Mutex<Vec<Message>>>,
}

impl Hook {
    /// `answer` says, by the number of the message, with which status line and header lines it is answered; with nothing
    /// the connection is closed.
    pub(crate) fn start(answer: impl Fn(usize) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heard) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let hook = Self { address, heard: Arc::clone(&heard) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(message) = read(stream.as_ref().unwrap()) else { continue };
                let number = {
                    let mut heard = heard.lock().unwrap();
                    heard.push(message);
                    heard.len()
                };
                let answer = answer(number);
                if !answer.is_empty() {
                    // Whoever asked may be gone.
                    write!(stream.unwrap(), "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok();
                }
            }
        });
        hook
    }

    pub(crate) fn heard(&self) -> Vec<Message> {
        self.heard.lock().unwrap().clone()
    }

    /// Number and kind of each alert that a webhook heard, in order.
    pub(crate) fn alerts(&self) -> Vec<String> {
        let heard = self.heard();
        let alerts = heard.iter().flat_map(|message| message.body["alerts"].as_array().unwrap());
        alerts.map(|alert| format!("{} {}", alert["number"], alert["kind"].as_str().unwrap())).collect()
    }
}

fn read(stream: &TcpStream) -> Option<Message> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            header => headers.push(header.to_ascii_lowercase()),
        }
    }
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length: "))?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Message { path, headers, body: serde_json::from_slice(&body).ok()? })
}
