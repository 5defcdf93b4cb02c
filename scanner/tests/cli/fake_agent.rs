//! An agent that speaks TLS and answers what the test wants.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;

use deadlight_shared::tls::{Credentials, TlsPaths};
use deadlight_shared::wire::Order;
use rustls::{ServerConnection, StreamOwned};

use crate::program::Deployment;

/// Starts an agent with the certificate of `name`; `answer` makes a status line and a body out of
/// each order. Returns its port. It lives as long as the test.
pub(crate) fn start(
    deployment: &Deployment,
    name: &str,
    mut answer: impl FnMut(Order) -> (&'static str, String) + Send + 'static,
) -> u16 {
    let paths = TlsPaths {
        ca: deployment.path("ca.crt"),
        certificate: deployment.path(&format!("agent-{name}.crt")),
        key: deployment.path(&format!("agent-{name}.key")),
    };
    let config = Arc::new(Credentials::load(&paths).unwrap().server_config().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        // The sweep and the control probes connect as well and say nothing.
        for socket in listener.incoming().map(Result::unwrap) {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket);
            let Some(order) = read_order(&mut stream) else { continue };
            let (status, body) = answer(order);
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
            let location = "location: https://127.0.0.1:1/\r\n\r\n";
            // A client that refuses a long answer hangs up.
            let _sent = stream.write_all(format!("{head}{location}{body}").as_bytes());
            stream.conn.send_close_notify();
            let _flushed = stream.flush();
        }
    });
    port
}

fn read_order(stream: &mut StreamOwned<ServerConnection, std::net::TcpStream>) -> Option<Order> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
        request.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        // It has no state of health to tell.
        if head.starts_with("GET /v1/status ") {
            return None;
        }
        let order: Option<Order> = serde_json::from_str(body).ok();
        if let Some(order) = order {
            assert!(head.starts_with("PUT /v1/exposures HTTP/1.1"), "{head}");
            assert_eq!(order.check(), Ok(()));
            return Some(order);
        }
    }
}
