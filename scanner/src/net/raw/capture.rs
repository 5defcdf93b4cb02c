//! Packets as they come in, before netfilter.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{BATCH, RawError, filter, sys};

/// From linux/if_ether.h.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// Room for some ten thousand answers while this process is not scheduled.
const ROOM: usize = 8 << 20;

/// Captures the answers to the probes from one block of source ports, on all interfaces: an answer
/// need not come back the way the probe went.
#[derive(Debug)]
pub struct Capture {
    sockets: Vec<Socket>,
}

impl Capture {
    /// Captures what comes to the block of source ports that starts at `first`, of the families wanted.
    pub fn open(first: u16, ipv4: bool, ipv6: bool) -> Result<Self, RawError> {
        let mut sockets = Vec::new();
        if ipv4 {
            sockets.push(socket(ETH_P_IP, &filter::ipv4(first))?);
        }
        if ipv6 {
            sockets.push(socket(ETH_P_IPV6, &filter::ipv6(first))?);
        }
        Ok(Self { sockets })
    }

    /// Hands every waiting packet, from its network header on, to `each`; does not wait for more.
    pub fn receive(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffers = [[0; filter::LONGEST as usize]; BATCH];
        let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
        for socket in &self.sockets {
            loop {
                let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
                let packets =
                    match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
                        Ok(packets) => packets,
                        Err(Errno::EAGAIN) => break,
                        // An interface went down or a signal came: neither concerns what waits.
                        Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                        Err(error) => return Err(error.into()),
                    };
                let mut count = 0;
                for packet in packets {
                    packet.iovs().for_each(&mut each);
                    count += 1;
                }
                if count < BATCH {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Packets that were dropped since the last call because they were not read in time.
    pub fn dropped(&self) -> io::Result<u64> {
        let mut sum = 0;
        for socket in &self.sockets {
            sum += u64::from(sys::dropped(socket.as_fd())?);
        }
        Ok(sum)
    }

    /// Readable when a packet waits.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.as_fd())
    }

    pub(super) fn into_sockets(self) -> Vec<Socket> {
        self.sockets
    }
}

fn socket(protocol: u16, filter: &[SockFilter]) -> Result<Socket, RawError> {
    let protocol = Protocol::from(i32::from(protocol.to_be()));
    // Bound to one protocol, the socket is shown what comes in and not what goes out.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(protocol))
        .map_err(RawError::of("open a packet socket"))?;
    socket.attach_filter(filter).map_err(RawError::of("attach a filter to a packet socket"))?;
    // Beyond the system's limit where we may; as much as it allows where not.
    setsockopt(&socket, RcvBufForce, &ROOM)
        .map_err(io::Error::from)
        .or_else(|_| socket.set_recv_buffer_size(ROOM))
        .map_err(RawError::of("enlarge the buffer of a packet socket"))?;
    Ok(socket)
}
