//! One question to a port, the way a stranger would ask it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// Long enough for one retransmission of the SYN on a busy machine, which comes after 1 s.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The service spoke.
    Data,
    /// The handshake was completed and then nothing came, as from dockerd's own listener.
    OpenNoData,
    /// RST, or port-unreachable for UDP.
    Refused,
    /// Nothing at all.
    Silent,
}

/// Connects from `namespace`, asks for a page and waits for the first word of whatever serves there.
pub fn tcp_answer(namespace: &Netns, to: SocketAddr) -> Result<Answer> {
    tcp_answer_from(namespace, unspecified(to), to)
}

/// The same from a given source address or port.
pub fn tcp_answer_from(namespace: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Answer> {
    namespace.enter(|| {
        let mut socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into()).with_context(|| format!("bind to {from}"))?;
        match socket.connect_timeout(&to.into(), PATIENCE) {
            Ok(()) => {}
            Err(error) => return unanswered(error).with_context(|| format!("connect to {to}")),
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(b"GET / HTTP/1.0\r\n\r\n").with_context(|| format!("write to {to}"))?;
        match socket.read(&mut [0; 64]) {
            Ok(length) => Ok(if length > 0 { Answer::Data } else { Answer::OpenNoData }),
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::ConnectionReset => Ok(Answer::OpenNoData),
            Err(error) => Err(error).with_context(|| format!("read from {to}")),
        }
    })
}

/// Sends one datagram from `namespace` and waits for the echo.
pub fn udp_answer(namespace: &Netns, to: SocketAddr) -> Result<Answer> {
    namespace.enter(|| {
        let mut socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        socket.connect(&to.into())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"anybody there?")?;
        match socket.read(&mut [0; 64]) {
            Ok(0) => bail!("{to} answered with an empty datagram"),
            Ok(_) => Ok(Answer::Data),
            Err(error) => unanswered(error).with_context(|| format!("receive from {to}")),
        }
    })
}

fn unanswered(error: io::Error) -> io::Result<Answer> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Ok(Answer::Refused),
        _ if is_timeout(&error) => Ok(Answer::Silent),
        _ => Err(error),
    }
}

/// A read time-out is reported as `WouldBlock` on Linux.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// Any address and port of the family of `address`.
pub(crate) fn unspecified(address: SocketAddr) -> SocketAddr {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    (any, 0).into()
}
