//! Connections that the node itself makes.

use std::{io::Read, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{answer::unspecified, netns::Netns};

/// Connects out of `node` to a [`crate::server::Server`], from a local port of choice, and demands its greeting.
pub fn connect_out(node: &Netns, local_port: u16, to: SocketAddr) -> Result<()> {
    let mut from = unspecified(to);
    from.set_port(local_port);
    node.enter(|| {
        let mut socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.bind(&from.into()).with_context(|| format!("bind to {from}"))?;
        socket.connect_timeout(&to.into(), Duration::from_secs(3)).with_context(|| format!("connect to {to}"))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        let length = socket.read(&mut [0; 16]).with_context(|| format!("read from {to}"))?;
        ensure!(length > 0, "{to} closed the connection without a word");
        // An abortive close leaves no TIME_WAIT behind, so that the port can be used again at once.
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(())
    })
}
