//! Sockets: one question each.

mod connect;
mod http;
mod limits;
pub mod raw;
mod resolve;
mod udp;
mod way;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use deadlight_shared::{Port, Protocol};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::TcpStream;

use crate::probe::{Outcome, failed_here};

pub use http::client as http_client;
pub use limits::in_flight_limit;
pub use resolve::{ResolveError, check_route, resolve};
pub use way::{NoWay, Route, Way, Ways};

/// One question and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What came of it.
    pub outcome: Outcome,
    /// The port it left from; `None` when it never left.
    pub source_port: Option<u16>,
}

/// Asks `port` at `address` once, from a source port of the kernel's choice, and waits at most
/// `limit` for the answer. `payload` is what a datagram says.
pub async fn ask(address: IpAddr, port: Port, payload: &[u8], limit: Duration) -> Asked {
    let target = SocketAddr::new(address, port.number.get());
    if port.protocol == Protocol::Tcp {
        return connect(address, port, limit).await.0;
    }
    match open(target, Type::DGRAM) {
        Err(error) => Asked { outcome: failed_here(&error), source_port: None },
        Ok((socket, source)) => {
            let outcome = seen_from(source, target, udp::outcome(socket, payload, limit).await);
            Asked { outcome, source_port: Some(source.port()) }
        }
    }
}

/// Whether `port` at `address` answers, asked a few times: one answer of a port that must answer is enough.
pub async fn answers(address: IpAddr, port: Port) -> bool {
    const ATTEMPTS: usize = 3;
    const LIMIT: Duration = Duration::from_millis(1_500);
    for _ in 0..ATTEMPTS {
        if matches!(ask(address, port, &[], LIMIT).await.outcome, Outcome::Answered { .. }) {
            return true;
        }
    }
    false
}

/// Makes a TCP handshake with `port` at `address` within `limit`; the connection, when it was answered.
pub async fn connect(address: IpAddr, port: Port, limit: Duration) -> (Asked, Option<TcpStream>) {
    let target = SocketAddr::new(address, port.number.get());
    match open(target, Type::STREAM) {
        Err(error) => (Asked { outcome: failed_here(&error), source_port: None }, None),
        Ok((socket, source)) => {
            let (outcome, stream) = connect::outcome(socket, limit).await;
            let outcome = seen_from(source, target, outcome);
            let stream = stream.filter(|_| matches!(outcome, Outcome::Answered { .. }));
            (Asked { outcome, source_port: Some(source.port()) }, stream)
        }
    }
}

/// A non-blocking socket on its way to `target`, and the address it got here.
fn open(target: SocketAddr, kind: Type) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(target), kind.nonblocking(), None)?;
    match socket.connect(&SockAddr::from(target)) {
        Err(error) if rustix::io::Errno::from_io_error(&error) != Some(rustix::io::Errno::INPROGRESS) => Err(error),
        _ => {
            let source = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            Ok((socket, source))
        }
    }
}

/// Guards against answers that this process gives itself. A socket whose two ends are equal talks
/// to itself; one to an address of this host can have met another of our own sockets.
fn seen_from(source: SocketAddr, target: SocketAddr, outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Answered { .. } if source == target => Outcome::Short("the probe met itself".to_owned()),
        Outcome::Answered { .. } => Outcome::Answered { own_host: source.ip() == target.ip() },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn ask_now(address: IpAddr, protocol: Protocol, number: u16) -> Asked {
        runtime().block_on(ask(address, Port::new(protocol, number).unwrap(), b"?", LIMIT))
    }

    #[test]
    fn a_listener_answers_and_its_absence_refuses() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let listener = std::net::TcpListener::bind((address, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let asked = ask_now(address, Protocol::Tcp, port);
            assert_eq!(asked.outcome, Outcome::Answered { own_host: true });
            assert!(asked.source_port.is_some_and(|source| source != 0 && source != port));
            drop(listener);
            assert_eq!(ask_now(address, Protocol::Tcp, port).outcome, Outcome::Refused);
        }
    }

    #[test]
    fn a_datagram_is_answered_refused_or_met_by_silence() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let service = std::net::UdpSocket::bind((address, 0)).unwrap();
            let port = service.local_addr().unwrap().port();
            let short = Duration::from_millis(10);
            let silent = runtime().block_on(ask(address, Port::new(Protocol::Udp, port).unwrap(), b"?", short));
            assert_eq!(silent.outcome, Outcome::Silent);
            let echo = service.try_clone().unwrap();
            let answering = std::thread::spawn(move || {
                let mut buffer = [0; 512];
                for _ in 0..2 {
                    let (length, from) = echo.recv_from(&mut buffer).unwrap();
                    // The first sender has closed its socket by now.
                    let _sent = echo.send_to(&buffer[..length], from);
                }
            });
            assert_eq!(ask_now(address, Protocol::Udp, port).outcome, Outcome::Answered { own_host: true });
            answering.join().unwrap();
            drop(service);
            assert_eq!(ask_now(address, Protocol::Udp, port).outcome, Outcome::Refused);
        }
    }

    #[test]
    fn a_probe_that_meets_itself_is_no_answer() {
        let end: SocketAddr = "127.0.0.1:40000".parse().unwrap();
        let answered = Outcome::Answered { own_host: false };
        assert!(matches!(seen_from(end, end, answered.clone()), Outcome::Short(_)));
        let neighbour = "127.0.0.1:40001".parse().unwrap();
        assert_eq!(seen_from(neighbour, end, answered.clone()), Outcome::Answered { own_host: true });
        let stranger = "192.0.2.1:40000".parse().unwrap();
        assert_eq!(seen_from(stranger, end, answered), Outcome::Answered { own_host: false });
        assert_eq!(seen_from(end, end, Outcome::Refused), Outcome::Refused);
    }
}
