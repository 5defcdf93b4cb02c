//! What the kernel tells by itself: nf_tables announces each transaction with the process that made it, and
//! routes are announced too. Tables of iptables-legacy are not.

use std::fmt;
use std::io;
use std::path::Path;
use std::thread;

use deadlight_shared::text::printable;
use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::is_initial;

/// `NFNLGRP_NFTABLES` of the kernel's `nfnetlink.h`.
const NFTABLES: u32 = 7;
/// `RTNLGRP_IPV4_ROUTE` and `RTNLGRP_IPV6_ROUTE` of the kernel's `rtnetlink.h`.
const ROUTES: [u32; 2] = [7, 11];
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the end of a transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;
const PROCESS_ID: u16 = 2;
const PROCESS_NAME: u16 = 3;
/// The header that all netfilter messages begin with.
const NETFILTER_HEADER: usize = 4;
/// The kernel's own limit of a process name.
const NAME: usize = 16;

/// Who ended a transaction; not known where the kernel had to leave out messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Author {
    /// Process id, as the initial namespace counts.
    pid: Option<u32>,
    /// The address of its netlink socket: the process id as its own namespace counts.
    socket: Option<u32>,
    name: Option<String>,
}

impl Author {
    /// Whether `is_ours` holds of the process id that our own namespace has for it: a container counts anew.
    pub fn is(&self, is_ours: impl Fn(u32) -> bool) -> bool {
        let id = if is_initial(Path::new("/proc/self/ns/pid")) { self.pid } else { self.socket };
        id.is_some_and(is_ours)
    }
}

impl fmt::Display for Author {
    /// Escaped, such as `iptables (pid 258)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.pid) {
            (Some(name), Some(pid)) => write!(f, "{name} (pid {pid})"),
            _ => f.write_str("unknown"),
        }
    }
}

/// Begins to listen; each change is told once, by its author. The listener ends when nobody receives.
///
/// # Errors
/// Where the kernel has no nf_tables, or listening needs more privilege.
pub fn of_firewall() -> io::Result<mpsc::UnboundedReceiver<Author>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    listen(NETLINK_NETFILTER, &[NFTABLES], move |datagram| {
        let authors = datagram.map_or_else(|| vec![Author::default()], authors);
        authors.into_iter().all(|author| sender.send(author).is_ok())
    })?;
    Ok(receiver)
}

/// Begins to listen for routes that come and go: an interface may face the outside from then on. Changes that
/// nobody has taken yet count as one.
///
/// # Errors
/// Where the kernel lets nobody listen.
pub fn of_routes() -> io::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(1);
    listen(NETLINK_ROUTE, &ROUTES, move |_| !matches!(sender.try_send(()), Err(TrySendError::Closed(()))))?;
    Ok(receiver)
}

/// Hands each datagram to `take` until that is false; none where the kernel had to leave some out.
fn listen(protocol: isize, groups: &[u32], take: impl Fn(Option<&[u8]>) -> bool + Send + 'static) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    groups.iter().try_for_each(|group| socket.add_membership(*group))?;
    thread::Builder::new().name("kernel-changes".to_owned()).spawn(move || {
        loop {
            let goes_on = match socket.recv_from_full() {
                Ok((datagram, _)) => take(Some(&datagram)),
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => take(None),
                Err(error) => return tracing::error!(%error, "changes are no longer heard; the timer goes on"),
            };
            if !goes_on {
                return;
            }
        }
    })?;
    Ok(())
}

/// The authors of all transactions that `datagram` ends.
fn authors(mut datagram: &[u8]) -> Vec<Author> {
    let mut authors = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        if message.message_type() == NEW_GENERATION {
            let attributes = message.payload().get(NETFILTER_HEADER..).unwrap_or_default();
            authors.push(author(message.port_number(), attributes));
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).saturating_add(3) & !3;
        datagram = datagram.get(length..).unwrap_or_default();
    }
    authors
}

fn author(socket: u32, attributes: &[u8]) -> Author {
    let attribute = |kind| NlasIterator::new(attributes).flatten().find(|found| found.kind() == kind);
    let name = attribute(PROCESS_NAME).map(|found| {
        let name = String::from_utf8_lossy(found.value()).into_owned();
        printable(name.trim_end_matches('\0'), NAME)
    });
    let pid = attribute(PROCESS_ID).and_then(|found| Some(u32::from_be_bytes(found.value().try_into().ok()?)));
    Author { pid, socket: Some(socket), name }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 sends it: header, netfilter header, generation, process id and name.
    fn generation(kind: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(44_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0, 0, 0, 9]);
        for (kind, value) in [(1_u16, [0, 0, 0, 9]), (PROCESS_ID, [0, 0, 1, 2]), (PROCESS_NAME, *b"nft\0")] {
            bytes.extend(8_u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
        }
        bytes
    }

    #[test]
    fn each_transaction_names_its_author() {
        let two = [generation(10 << 8), generation(NEW_GENERATION), generation(NEW_GENERATION)].concat();
        let named = |bytes: &[u8]| authors(bytes).iter().map(Author::to_string).collect::<Vec<_>>();
        assert_eq!(named(&two), ["nft (pid 258)", "nft (pid 258)"]);
        assert_eq!(authors(&two)[0].socket, Some(7));
        assert_eq!(named(&two[..80]), Vec::<String>::new(), "cut off");
        assert_eq!(Author::default().to_string(), "unknown");
    }
}
