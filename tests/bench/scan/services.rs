//! What is open on the nodes of the lab.

use std::{
    collections::BTreeSet,
    net::{IpAddr, TcpListener, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use deadlight_tests::netns::Netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::lab::Target;

/// DNS, NTP and SNMP.
pub(crate) const UDP: [u16; 3] = [53, 123, 161];
const BACKLOG: i32 = 1_024;
const TICK: Duration = Duration::from_millis(50);

/// Runs until dropped.
#[derive(Debug)]
pub(crate) struct Services {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Services {
    /// Listens on `tcp`, closing each connection at once, and answers DNS, NTP and SNMP at `udp`.
    pub(crate) fn start(node: &Netns, tcp: &BTreeSet<Target>, udp: &[IpAddr]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let listeners = node.enter(|| tcp.iter().map(listen).collect::<Result<Vec<_>>>())?;
        let sockets = node.enter(|| {
            let ports = udp.iter().flat_map(|address| UDP.map(|port| (*address, port)));
            ports
                .map(|target| UdpSocket::bind(target).with_context(|| format!("{target:?}")))
                .collect::<Result<Vec<_>>>()
        })?;
        let mut threads = vec![thread::spawn({
            let stop = Arc::clone(&stop);
            move || accept(&listeners, &stop)
        })];
        for socket in sockets {
            socket.set_read_timeout(Some(TICK))?;
            let stop = Arc::clone(&stop);
            threads.push(thread::spawn(move || answer(&socket, &stop)));
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                anstream::eprintln!("a service panicked");
            }
        }
    }
}

fn listen((address, port): &Target) -> Result<TcpListener> {
    let domain = if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::new(*address, *port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept(listeners: &[TcpListener], stop: &AtomicBool) {
    let mut waiting: Vec<_> =
        listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
    while !stop.load(Ordering::SeqCst) {
        if poll(&mut waiting, PollTimeout::from(50_u8)).unwrap_or(0) == 0 {
            continue;
        }
        for (listener, ready) in listeners.iter().zip(&waiting) {
            if ready.any().unwrap_or(false) {
                while listener.accept().is_ok() {}
            }
        }
    }
}

/// Answers what is of the protocol of its port, as such a service would; nothing else.
fn answer(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 1_500];
    while !stop.load(Ordering::SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let request = &buffer[..length];
        let port = socket.local_addr().map(|address| address.port()).unwrap_or_default();
        let reply = match port {
            // A query with one question: the same with the bits "answer" and "refused".
            53 if length > 12 && request[2] & 0x80 == 0 && request[4..6] == [0, 1] => {
                let mut reply = request.to_vec();
                (reply[2], reply[3]) = (0x80, 0x05);
                Some(reply)
            }
            // Mode 3 is a client, mode 4 a server.
            123 if length == 48 && request[0] & 7 == 3 => Some([&[0x24], &request[1..]].concat()),
            // A sequence with a version in it.
            161 if request.starts_with(&[0x30]) && request.get(2..4) == Some(&[2, 1]) => Some(request.to_vec()),
            _ => None,
        };
        if let Some(reply) = reply {
            socket.send_to(&reply, from).ok();
        }
    }
}
