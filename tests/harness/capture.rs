//! TCP segments as they pass on the wires of a namespace.

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use pnet::packet::{
    Packet,
    ethernet::{EtherTypes, EthernetPacket},
    ip::IpNextHeaderProtocols,
    ipv4::Ipv4Packet,
    ipv6::Ipv6Packet,
    tcp::TcpPacket,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{answer::is_timeout, netns::Netns};

/// Room for some ten thousand small frames: none is lost while the reader is not scheduled.
const RECEIVE_BUFFER: usize = 16 << 20;
/// From linux/if_ether.h: frames of every protocol.
const ETH_P_ALL: u16 = 3;

/// What matters of one segment.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// The TCP flags, see [`pnet::packet::tcp::TcpFlags`].
    pub flags: u8,
}

/// Hands every TCP segment seen in a namespace to a closure, until dropped.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts listening; from the return on nothing is missed.
    pub fn start(namespace: &Netns, mut see: impl FnMut(Segment) + Send + 'static) -> Result<Self> {
        let mut socket = namespace.enter(|| {
            let every_protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
            Socket::new(Domain::PACKET, Type::RAW, Some(every_protocol)).context("open a packet socket")
        })?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut frame = [0; 65_536];
                while !stop.load(Ordering::SeqCst) {
                    match socket.read(&mut frame) {
                        Ok(length) => {
                            if let Some(segment) = parse(&frame[..length]) {
                                see(segment);
                            }
                        }
                        // Whoever stops the process for a moment interrupts the wait.
                        Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => {
                            eprintln!("capture ended early: {error}");
                            return;
                        }
                    }
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Capture {
    /// Whether it still listens; a count of a dead capture proves nothing.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("a capture panicked");
        }
    }
}

fn parse(frame: &[u8]) -> Option<Segment> {
    let frame = EthernetPacket::new(frame)?;
    match frame.get_ethertype() {
        EtherTypes::Ipv4 => {
            let packet = Ipv4Packet::new(frame.payload())?;
            (packet.get_next_level_protocol() == IpNextHeaderProtocols::Tcp).then_some(())?;
            segment(packet.get_source().into(), packet.get_destination().into(), packet.payload())
        }
        EtherTypes::Ipv6 => {
            let packet = Ipv6Packet::new(frame.payload())?;
            (packet.get_next_header() == IpNextHeaderProtocols::Tcp).then_some(())?;
            segment(packet.get_source().into(), packet.get_destination().into(), packet.payload())
        }
        _ => None,
    }
}

fn segment(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Option<Segment> {
    let tcp = TcpPacket::new(payload)?;
    Some(Segment {
        source: (source, tcp.get_source()).into(),
        destination: (destination, tcp.get_destination()).into(),
        flags: tcp.get_flags(),
    })
}
