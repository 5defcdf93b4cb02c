//! What has no safe wrapper: two calls with a struct of linux/if_packet.h.

#![expect(unsafe_code, reason = "bind(2) and getsockopt(2) on a packet socket have no safe wrapper")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

/// Binds a packet socket to the interface with this index; it receives nothing.
pub(super) fn bind_to_interface(socket: BorrowedFd<'_>, interface: i32) -> io::Result<()> {
    // SAFETY: sockaddr_ll consists of integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET.cast_unsigned().try_into().map_err(io::Error::other)?;
    address.sll_ifindex = interface;
    let length = size_of::<libc::sockaddr_ll>().try_into().map_err(io::Error::other)?;
    // SAFETY: the pointer is to a sockaddr_ll that lives through the call, and the length is its own.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Packets that a packet socket had no room for since the last call.
pub(super) fn dropped(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>().try_into().map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to a struct of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(statistics.tp_drops),
        _ => Err(io::Error::last_os_error()),
    }
}
