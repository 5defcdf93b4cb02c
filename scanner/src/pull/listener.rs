//! Where nodes call: bounded in how many may be unknown at a time, with a deadline until they are known.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use deadlight_shared::enrol::{EXPORTER_LABEL, EXPORTER_LENGTH};
use deadlight_shared::tls::Caller;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::hub::{Admitted, Connection, Door, Hub, alive};
use super::lane::Lane;
use crate::line::Line;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes at a time: of our nodes' addresses, and of all others.
const OF_NODES: usize = 256;
const OF_OTHERS: usize = 128;
const BACKLOG: i32 = 4_096;
/// How often refused calls are worth a line.
const SUMMARY: Duration = Duration::from_secs(60);
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why nobody can call.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address}")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// Where nodes call.
pub struct Listener {
    listener: TcpListener,
    known: BTreeSet<IpAddr>,
}

impl Listener {
    /// Listens on `address`. Strangers push away each other, and nobody who comes from a `known` address.
    pub fn bind(address: SocketAddr, known: BTreeSet<IpAddr>) -> Result<Self, ListenError> {
        let listener = bind(address).map_err(|source| ListenError { address, source })?;
        Ok(Self { listener, known })
    }

    /// Lets callers in to `hub`, for ever.
    pub async fn run(self, hub: Hub) {
        let (mut nodes, mut others) = (Lane::new(OF_NODES), Lane::new(OF_OTHERS));
        let (mut handshakes, mut refusals) = (JoinSet::new(), Refusals::default());
        loop {
            let accepted = tokio::select! {
                Some(ended) = handshakes.join_next() => {
                    match ended {
                        Ok(Ok((admitted, connection))) => drop(tokio::spawn(hub.clone().keep(admitted, connection))),
                        Ok(Err(refused)) => refusals.tell(&refused, Instant::now()),
                        // Pushed away.
                        Err(_) => {}
                    }
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let is_known = self.known.contains(&peer.ip().to_canonical());
                    let lane = if is_known { &mut nodes } else { &mut others };
                    lane.enter(handshakes.spawn(shake_hands(stream, peer, hub.door())));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a call");
                    // Out of descriptors: accepting again at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Who was not let in.
struct Refused {
    peer: SocketAddr,
    why: String,
}

/// The first refusal gets a line, and then one a minute says how many there were.
#[derive(Default)]
struct Refusals {
    untold: u64,
    told: Option<Instant>,
}

impl Refusals {
    fn tell(&mut self, refused: &Refused, now: Instant) {
        self.untold += 1;
        if self.told.is_some_and(|told| now.duration_since(told) < SUMMARY) {
            return;
        }
        let Refused { peer, why } = refused;
        tracing::warn!(refused = self.untold, last = %peer, "calls refused since the last such line: {why}");
        *self = Self { untold: 0, told: Some(now) };
    }
}

async fn shake_hands(stream: TcpStream, peer: SocketAddr, door: Door) -> Result<(Admitted, Connection), Refused> {
    let admitted = timeout(HANDSHAKE_LIMIT, admit(stream, door)).await;
    let why = match admitted {
        Ok(Ok(admitted)) => return Ok(admitted),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the handshake took too long".to_owned(),
    };
    Err(Refused { peer, why })
}

async fn admit(
    stream: TcpStream,
    Door { callers, tls }: Door,
) -> Result<(Admitted, Connection), Box<dyn std::error::Error + Send + Sync>> {
    watch_over(&stream)?;
    let stream = TlsAcceptor::from(tls).accept(stream).await?;
    let connection = stream.get_ref().1;
    let chain: Vec<_> =
        connection.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let caller = callers.judge(&chain)?;
    let mut channel = [0; EXPORTER_LENGTH];
    connection.export_keying_material(&mut channel, EXPORTER_LABEL, None)?;
    let (mut line, connection) = Line::over(stream).await?;
    let mut connection: Connection = Box::pin(connection);
    // A call stands when it has answered for the first time, and only then takes the place of an older one.
    if let Caller::Agent { .. } = caller {
        let alive = alive();
        tokio::select! {
            () = &mut connection => return Err("it hung up".into()),
            answer = line.ask(&alive) => drop(answer?),
        }
    }
    Ok((Admitted { caller, chain, channel, line }, connection))
}

/// A node that is gone without a word is found out by the kernel.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    // A restart must not wait for connections of the last run to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_once_a_minute() {
        let (mut refusals, begin) = (Refusals::default(), Instant::now());
        let refused = Refused { peer: "198.51.100.2:1".parse().unwrap(), why: "x".to_owned() };
        refusals.tell(&refused, begin);
        assert_eq!(refusals.told, Some(begin));
        for second in 1..60 {
            refusals.tell(&refused, begin + Duration::from_secs(second));
        }
        assert_eq!((refusals.untold, refusals.told), (59, Some(begin)));
        refusals.tell(&refused, begin + SUMMARY);
        assert_eq!((refusals.untold, refusals.told), (0, Some(begin + SUMMARY)));
    }
}
