//! Source ports that no other program of this host gets.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::RawError;
use crate::probe::SOURCE_PORTS;

/// Above the range that Linux takes ports for outgoing connections from.
const FROM: u16 = 61_024;

/// A block of source ports, bound until dropped.
#[derive(Debug)]
pub struct SourcePorts {
    first: u16,
    _sockets: Vec<Socket>,
}

impl SourcePorts {
    /// Binds a free block; `choice` decides where the search begins.
    pub fn reserve(choice: u16) -> Result<Self, RawError> {
        let blocks = (u16::MAX - FROM) / SOURCE_PORTS;
        let mut result = Err(io::ErrorKind::AddrInUse.into());
        for turn in 0..blocks {
            let first = FROM + (choice % blocks + turn) % blocks * SOURCE_PORTS;
            let sockets: io::Result<Vec<_>> = (first..first + SOURCE_PORTS).map(bound).collect();
            result = sockets.map(|sockets| Self { first, _sockets: sockets });
            if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
                continue;
            }
            break;
        }
        result.map_err(RawError::of("reserve source ports"))
    }

    /// The first of the block; a multiple of [`SOURCE_PORTS`].
    pub fn first(&self) -> u16 {
        self.first
    }
}

/// A socket that holds `port` of both families, where there are both.
fn bound(port: u16) -> io::Result<Socket> {
    let open = |domain, address: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sweeps_get_two_blocks_and_nobody_else_gets_them() {
        let (one, two) = (SourcePorts::reserve(7).unwrap(), SourcePorts::reserve(7).unwrap());
        assert_ne!(one.first(), two.first());
        for block in [&one, &two] {
            assert_eq!(block.first() % SOURCE_PORTS, 0);
            for port in block.first()..block.first() + SOURCE_PORTS {
                for address in ["127.0.0.1", "::1"] {
                    let address: std::net::IpAddr = address.parse().unwrap();
                    let taken = std::net::TcpListener::bind((address, port)).unwrap_err();
                    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
                }
            }
        }
        let first = one.first();
        drop(one);
        assert_eq!(SourcePorts::reserve(7).unwrap().first(), first);
    }
}
