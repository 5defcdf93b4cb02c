//! One question to the kernel over netlink, and all of its answers.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

const LIMIT: Duration = Duration::from_secs(5);

/// Why the kernel was not heard.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket fails, or the kernel is silent.
    #[error("failed to talk to the kernel over netlink")]
    Socket(#[source] io::Error),
    /// The kernel refuses: no permission, no such object, or no such feature.
    #[error("the kernel refuses the netlink request")]
    Refused(#[source] io::Error),
    /// An interface with a default route has a name that cannot stand in a rule.
    #[error("the interface name {0:?} cannot stand in a rule; rename it")]
    Interface(String),
    /// An answer that is no netlink message.
    #[error("failed to read the kernel's netlink answer: {0}")]
    Decode(String),
}

/// Sends `request` to `protocol` and hands every message of the answer to `each`, up to the end of
/// the dump or the acknowledgement.
pub(super) fn exchange<M>(protocol: isize, flags: u16, request: M, mut each: impl FnMut(M)) -> Result<(), NetlinkError>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let socket = send(protocol, flags, request).map_err(NetlinkError::Socket)?;
    loop {
        let (datagram, _) = socket.recv_from_full().map_err(NetlinkError::Socket)?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<M>::deserialize(rest).map_err(|error| NetlinkError::Decode(error.to_string()))?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(NetlinkError::Refused(error.to_io())),
                NetlinkPayload::InnerMessage(message) => each(message),
                _ => {}
            }
            // Messages are aligned to four bytes; the last one of a datagram need not be.
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).saturating_add(3) & !3;
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

fn send<M: NetlinkSerializable>(protocol: isize, flags: u16, request: M) -> io::Result<Socket> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    Ok(socket)
}
