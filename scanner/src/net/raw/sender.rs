//! Packets out through one interface.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _};

use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::{BATCH, RawError, sys};
use crate::probe::LONGEST_PACKET;

/// Room for a link header before the packet.
const HEADER: usize = 14;

/// One packet with its link header, built in place.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    bytes: [u8; HEADER + LONGEST_PACKET],
    start: usize,
    end: usize,
}

/// Sends frames to one link.
#[derive(Debug)]
pub struct Sender {
    socket: Socket,
}

impl Frame {
    /// An empty frame.
    pub fn new() -> Self {
        Self { bytes: [0; HEADER + LONGEST_PACKET], start: HEADER, end: HEADER }
    }

    /// Where the packet is to be written.
    pub fn packet(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER..]
    }

    /// Completes the frame around a packet of `length` bytes; `header` is the link's, where it has one.
    pub fn complete(&mut self, length: usize, header: Option<&[u8; HEADER]>) {
        self.end = HEADER + length.min(LONGEST_PACKET);
        self.start = match header {
            None => HEADER,
            Some(header) => {
                self.bytes[..HEADER].copy_from_slice(header);
                0
            }
        };
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

impl Sender {
    /// Sends through the interface with this index.
    pub fn open(interface: u32) -> Result<Self, RawError> {
        // Of no protocol: it sends and is shown nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(Protocol::from(0)))
            .map_err(RawError::of("open a packet socket"))?;
        let interface = i32::try_from(interface).map_err(io::Error::other);
        interface
            .and_then(|interface| sys::bind_to_interface(socket.as_fd(), interface))
            .map_err(RawError::of("bind a packet socket to an interface"))?;
        Ok(Self { socket })
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Sends `frames` in order and returns how many left before the kernel had no room.
    pub fn send(&self, frames: &[Frame]) -> io::Result<usize> {
        let mut sent = 0;
        for batch in frames.chunks(BATCH) {
            let slices: Vec<_> = batch.iter().map(|frame| [IoSlice::new(frame.bytes())]).collect();
            let mut headers = MultiHeaders::<()>::preallocate(batch.len(), None);
            let nowhere = [None; BATCH];
            let flags = MsgFlags::MSG_DONTWAIT;
            let result = sendmmsg(self.socket.as_raw_fd(), &mut headers, &slices, nowhere, [], flags);
            let left = match result.map(Iterator::count).map_err(io::Error::from) {
                Ok(left) => left,
                Err(error) if sent == 0 => return Err(error),
                Err(_) => 0,
            };
            sent += left;
            if left < batch.len() {
                break;
            }
        }
        Ok(sent)
    }
}
