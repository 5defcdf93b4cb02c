use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;
use crate::inventory::{docker, events};

/// From the request line: what is said once, then again and again; or nothing more.
type Answer = fn(&str) -> (String, &'static [u8]);

/// An engine that notes what it is asked, and says what a test wants.
struct Engine {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl Engine {
    fn new(answer: Answer) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("docker.sock")).unwrap();
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let noted = Arc::clone(&noted);
                tokio::spawn(async move {
                    let head = read_head(&mut stream).await;
                    let line = head.lines().next().unwrap_or_default().to_owned();
                    let (first, again) = answer(&line);
                    noted.lock().unwrap().insert(line);
                    stream.write_all(first.as_bytes()).await?;
                    while !again.is_empty() {
                        stream.write_all(again).await?;
                        tokio::task::yield_now().await;
                    }
                    std::io::Result::Ok(())
                });
            }
        });
        Self { directory, asked }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("docker.sock")
    }

    fn asked(&self) -> BTreeSet<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Sends `text` to a gate before this engine, and reads its answer to the end.
    async fn through_a_gate(&self, text: &str) -> String {
        let (mut near, far) = tokio::io::duplex(PIPE_BYTES);
        let serving = tokio::spawn(Gate::new(self.socket()).serve(far));
        near.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        serving.await.unwrap();
        String::from_utf8(answer).unwrap()
    }
}

async fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn json(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len())
}

/// Manager of a swarm, with nothing in it.
fn manager(line: &str) -> (String, &'static [u8]) {
    let swarm = r#"{"Swarm":{"LocalNodeState":"active","ControlAvailable":true}}"#;
    match line.split(' ').nth(1) {
        Some("/info") => (json(swarm), b""),
        Some("/_ping") => (json("OK"), b""),
        Some(events) if events.starts_with("/events") => {
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(), b"3\r\n{}\n\r\n")
        }
        _ => (json("[]"), b""),
    }
}

#[tokio::test]
async fn the_list_is_what_the_inventory_asks_no_less_and_no_more() {
    let engine = Engine::new(manager);
    docker::gather(&engine.socket()).await.unwrap();
    docker::networks(&engine.socket()).await.unwrap();
    let mut changes = events::watch(engine.socket());
    // The engine that is there, then its events.
    for _ in 0..3 {
        changes.recv().await.unwrap();
    }
    let listed = permit::QUESTIONS.iter().map(|question| format!("GET {} HTTP/1.1", question.target));
    assert_eq!(engine.asked(), listed.collect());
}

#[tokio::test]
async fn nothing_else_reaches_the_engine() {
    let engine = Engine::new(manager);
    for (head, status) in [
        ("POST /networks HTTP/1.1\r\nhost: x\r\n", 403),
        ("GET /swarm/unlockkey HTTP/1.1\r\nhost: x\r\n", 403),
        ("GET //networks HTTP/1.1\r\nhost: x\r\n", 403),
        ("GET /%6eetworks HTTP/1.1\r\nhost: x\r\n", 403),
        ("GET /x/../networks HTTP/1.1\r\nhost: x\r\n", 403),
        ("GET http://docker/networks HTTP/1.1\r\nhost: x\r\n", 403),
        ("GET /networks HTTP/1.1\r\nhost: x\r\nupgrade: tcp\r\nconnection: upgrade\r\n", 403),
        ("GET /networks HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n", 403),
        ("GET /networks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n", 403),
        ("CONNECT docker:80 HTTP/1.1\r\nhost: x\r\n", 403),
        ("GET networks HTTP/1.1\r\nhost: x\r\n", 403),
        ("PRI * HTTP/2.0\r\n", 400),
    ] {
        let answer = engine.through_a_gate(&format!("{head}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}{answer}");
    }
    assert_eq!(engine.asked(), BTreeSet::new());
    let answer = engine.through_a_gate("GET /networks HTTP/1.1\r\nhost: x\r\n\r\nGET /info HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("[]"), "{answer}");
    assert_eq!(engine.asked(), ["GET /networks HTTP/1.1".to_owned()].into(), "one question for a connection");
}

#[tokio::test]
async fn whoever_says_nothing_is_not_waited_for() {
    let engine = Engine::new(manager);
    assert_eq!(engine.through_a_gate("GET /networks HTTP/1.1\r\n").await, "");
}

#[tokio::test]
async fn an_answer_is_bounded_in_size() {
    let (engine, question) = (Engine::new(endless), permitted("GET", "/networks").unwrap());
    let error = Gate::new(engine.socket()).whole(question).await.unwrap_err();
    assert!(matches!(error, GateError::TooLong), "{error}");
}

#[tokio::test]
async fn an_answer_is_bounded_in_time_and_form() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let cases: [(Answer, &str); 6] = [
        (|_| (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1 << 30), b"x"), "no answer within 2 s"),
        (|_| (CHUNKED.to_owned(), b"1\r\n \r\n"), "no answer within 2 s"),
        (|_| ("HTTP/1.1 200 OK\r\n".to_owned() + &"x: y\r\n".repeat(1000), b"x: y\r\n"), "not HTTP"),
        (|_| ("HTTP/1.1 101 Switching Protocols\r\nupgrade: tcp\r\n\r\n".to_owned(), b"x"), "another protocol"),
        (|_| ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort".to_owned(), b""), "breaks off"),
        (|_| ("\0\u{1b}[31m".to_owned(), b""), "not HTTP"),
    ];
    for (answer, told) in cases {
        let engine = Engine::new(answer);
        let answer = engine.through_a_gate("GET /networks HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains(told), "{told}: {answer}");
        let error = docker::gather(&engine.socket()).await.unwrap_err().to_string();
        assert!(error.contains(told) || error.contains("gave no answer within 2 s"), "{told}: {error}");
    }
}

fn endless(_: &str) -> (String, &'static [u8]) {
    static CHUNK: [u8; 0x10000 + 9] = {
        let mut chunk = [b' '; 0x10000 + 9];
        let (head, end) = (*b"10000\r\n", chunk.len());
        let mut at = 0;
        while at < head.len() {
            chunk[at] = head[at];
            at += 1;
        }
        chunk[end - 2] = b'\r';
        chunk[end - 1] = b'\n';
        chunk
    };
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(), &CHUNK)
}

#[tokio::test]
async fn an_event_without_an_end_ends_the_events() {
    let engine = Engine::new(endless);
    let events = "GET /events?filters=%7B%22type%22%3A%5B%22network%22%2C%22service%22%2C%22node%22%5D%7D HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = engine.through_a_gate(events).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, "", "nothing of such a line is passed on");
}

#[tokio::test]
async fn no_engine_is_an_error_that_says_so() {
    let error = docker::gather(Path::new("/nonexistent/docker.sock")).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/docker.sock") && error.contains("No such file"), "{error}");
}
