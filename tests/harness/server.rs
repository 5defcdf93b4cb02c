//! The services of the lab: they greet, push and count.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{answer::is_timeout, netns::Netns};

/// How often each side of a session sends something.
pub(crate) const BEAT: Duration = Duration::from_millis(20);
/// A datagram that asks for one push a beat from now on.
pub(crate) const SUBSCRIBE: &[u8] = b"subscribe";

/// How much arrived, and when the last of it did.
#[derive(Debug, Default)]
pub struct Tally {
    arrivals: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl Tally {
    /// Arrivals so far: reads of a stream, or datagrams.
    pub fn arrivals(&self) -> u64 {
        self.arrivals.load(Ordering::SeqCst)
    }

    /// When something arrived last.
    pub fn last(&self) -> Option<Instant> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn arrived(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.arrivals.fetch_add(1, Ordering::SeqCst);
    }
}

/// A listening service inside a namespace; ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    received: Arc<Tally>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Greets each connection, pushes one byte a beat and counts what the client sends.
    pub fn tcp(namespace: &Netns, address: SocketAddr) -> Result<Self> {
        let socket = listening(namespace, address)?;
        // Bounds accept(), so that the thread sees the wish to stop.
        socket.set_read_timeout(Some(BEAT))?;
        Ok(Self::spawn(address, move |received, stop| accept_loop(&socket.into(), received, stop)))
    }

    /// Completes handshakes and stays mute: what dockerd's own listener for an ingress port does.
    pub fn deaf(namespace: &Netns, address: SocketAddr) -> Result<Self> {
        let socket = listening(namespace, address)?;
        Ok(Self::spawn(address, move |_, stop| {
            while !stop.load(Ordering::SeqCst) {
                thread::park();
            }
            drop(socket);
        }))
    }

    /// Echoes datagrams; pushes to whoever subscribed last.
    pub fn udp(namespace: &Netns, address: SocketAddr) -> Result<Self> {
        let socket: UdpSocket = bound(namespace, address, Type::DGRAM, Protocol::UDP)?.into();
        socket.set_read_timeout(Some(BEAT))?;
        Ok(Self::spawn(address, move |received, stop| udp_loop(&socket, &received, &stop)))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients sent.
    pub fn received(&self) -> Arc<Tally> {
        Arc::clone(&self.received)
    }

    fn spawn(address: SocketAddr, serve: impl FnOnce(Arc<Tally>, Arc<AtomicBool>) + Send + 'static) -> Self {
        let (received, stop) = <(Arc<Tally>, Arc<AtomicBool>)>::default();
        let thread = thread::spawn({
            let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
            move || serve(received, stop)
        });
        Self { address, received, stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                eprintln!("the service on {} panicked", self.address);
            }
        }
    }
}

fn listening(namespace: &Netns, address: SocketAddr) -> Result<Socket> {
    let socket = bound(namespace, address, Type::STREAM, Protocol::TCP)?;
    socket.listen(128)?;
    Ok(socket)
}

fn bound(namespace: &Netns, address: SocketAddr, kind: Type, protocol: Protocol) -> Result<Socket> {
    namespace.enter(|| {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // An outbound connection from the same local port must stay possible.
        socket.set_reuse_port(true)?;
        socket.bind(&address.into()).with_context(|| format!("listen on {address} in {}", namespace.name()))?;
        Ok(socket)
    })
}

fn accept_loop(listener: &TcpListener, received: Arc<Tally>, stop: Arc<AtomicBool>) {
    let mut conversations: Vec<JoinHandle<()>> = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        if let Ok((mut stream, _)) = listener.accept() {
            let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
            // A thread that has ended keeps its stack for as long as somebody could still join it.
            conversations.retain(|conversation| !conversation.is_finished());
            conversations.push(thread::spawn(move || {
                if stream.write_all(b"hello\n").is_ok() {
                    push_and_count(&mut stream, &received, &stop);
                }
            }));
        }
    }
    for conversation in conversations {
        conversation.join().ok();
    }
}

/// One side of a TCP session: a byte out each beat, and a tally of what comes in, until either side has enough.
pub(crate) fn push_and_count(stream: &mut std::net::TcpStream, received: &Tally, stop: &AtomicBool) {
    if stream.set_read_timeout(Some(BEAT)).is_err() || stream.set_nodelay(true).is_err() {
        return;
    }
    while !stop.load(Ordering::SeqCst) && stream.write_all(b".").is_ok() {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return,
            Ok(_) => received.arrived(),
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
}

fn udp_loop(socket: &UdpSocket, received: &Tally, stop: &AtomicBool) {
    let mut subscriber = None;
    let mut buffer = [0; 1024];
    while !stop.load(Ordering::SeqCst) {
        // Errors are the port-unreachable of clients that went away.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            received.arrived();
            if &buffer[..length] == SUBSCRIBE {
                subscriber = Some(from);
            } else {
                socket.send_to(&buffer[..length], from).ok();
            }
        }
        if let Some(to) = subscriber {
            socket.send_to(b"push", to).ok();
        }
    }
}
