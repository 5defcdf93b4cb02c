//! Who changed the firewall, as the kernel tells at once: nf_tables announces each transaction with
//! the process that made it. Tables of iptables-legacy are not announced.

use std::io;
use std::thread;

use deadlight_shared::text::printable;
use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use tokio::sync::mpsc;

/// `NFNLGRP_NFTABLES` of the kernel's `nfnetlink.h`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the end of a transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;
const PROCESS_ID: u16 = 2;
const PROCESS_NAME: u16 = 3;
/// The header that all netfilter messages begin with.
const NETFILTER_HEADER: usize = 4;
/// The kernel's own limit of a process name.
const NAME: usize = 16;

/// Who ended a transaction; `unknown` where the kernel had to leave out messages.
pub type Author = String;

/// Begins to listen; each change is told once, by its author. The listener ends when nobody receives.
///
/// # Errors
/// Where the kernel has no nf_tables, or listening needs more privilege.
pub fn watch() -> io::Result<mpsc::UnboundedReceiver<Author>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(GROUP)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::Builder::new().name("firewall-changes".to_owned()).spawn(move || {
        loop {
            let authors = match socket.recv_from_full() {
                Ok((datagram, _)) => authors(&datagram),
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    vec!["unknown".to_owned()]
                }
                Err(error) => return tracing::error!(%error, "firewall changes are no longer heard; the timer goes on"),
            };
            if authors.into_iter().any(|author| sender.send(author).is_err()) {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// The authors of all transactions that `datagram` ends.
fn authors(mut datagram: &[u8]) -> Vec<Author> {
    let mut authors = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        if message.message_type() == NEW_GENERATION {
            authors.push(author(message.payload().get(NETFILTER_HEADER..).unwrap_or_default()));
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).saturating_add(3) & !3;
        datagram = datagram.get(length..).unwrap_or_default();
    }
    authors
}

fn author(attributes: &[u8]) -> Author {
    let attribute = |kind| NlasIterator::new(attributes).flatten().find(|found| found.kind() == kind);
    let name = attribute(PROCESS_NAME).map(|found| {
        let name = String::from_utf8_lossy(found.value()).into_owned();
        printable(name.trim_end_matches('\0'), NAME)
    });
    let pid = attribute(PROCESS_ID).and_then(|found| Some(u32::from_be_bytes(found.value().try_into().ok()?)));
    match (name, pid) {
        (Some(name), Some(pid)) => format!("{name} (pid {pid})"),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 sends it: header, netfilter header, generation, process id and name.
    fn generation(kind: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(44_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
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
        assert_eq!(authors(&two), ["nft (pid 258)", "nft (pid 258)"]);
        assert_eq!(authors(&two[..80]), Vec::<Author>::new(), "cut off");
    }
}
