//! Long-lived sessions in which both sides talk, to see each direction fall silent.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    answer::unspecified,
    netns::Netns,
    server::{BEAT, SUBSCRIBE, Server, Tally, push_and_count},
    wait::wait_for,
};

/// How long silence is watched before it is believed: several beats and TCP retransmissions.
const OBSERVED: Duration = Duration::from_secs(1);

/// A client of a [`Server`] that sends and receives each beat until dropped.
#[derive(Debug)]
pub struct Session {
    name: String,
    to_server: Arc<Tally>,
    to_client: Arc<Tally>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    /// A TCP session from `namespace` to `address`, where (after whatever translation) `server` answers.
    pub fn tcp(namespace: &Netns, address: SocketAddr, server: &Server) -> Result<Self> {
        let mut stream =
            namespace.enter(|| TcpStream::connect(address).with_context(|| format!("connect to {address}")))?;
        Self::flowing(format!("{address}/tcp"), server, move |received, stop| {
            push_and_count(&mut stream, received, stop);
        })
    }

    /// The same over UDP.
    pub fn udp(namespace: &Netns, address: SocketAddr, server: &Server) -> Result<Self> {
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind(unspecified(address))?;
            socket.connect(address)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(BEAT))?;
        Self::flowing(format!("{address}/udp"), server, move |received, stop| {
            while !stop.load(Ordering::SeqCst) {
                // A rejecting guard shows up here as an error; a client that tries on is the harder case.
                socket.send(SUBSCRIBE).ok();
                match socket.recv(&mut [0; 64]) {
                    Ok(_) => received.arrived(),
                    Err(_) => thread::sleep(BEAT),
                }
            }
        })
    }

    /// Demands that nothing arrives on either side later than `within` after `closed`.
    pub fn ensure_silent(&self, closed: Instant, within: Duration) -> Result<()> {
        let deadline = closed + within;
        thread::sleep((deadline + OBSERVED).saturating_duration_since(Instant::now()));
        for (direction, tally) in [("server", &self.to_server), ("client", &self.to_client)] {
            let late = tally.last().map_or(Duration::ZERO, |last| last.saturating_duration_since(deadline));
            ensure!(
                late.is_zero(),
                "{}: the {direction} received data {:?} after the closing",
                self.name,
                within + late
            );
        }
        Ok(())
    }

    /// Demands that both directions move.
    pub fn ensure_flowing(&self) -> Result<()> {
        let before = (self.to_server.arrivals(), self.to_client.arrivals());
        wait_for("both directions of the session", Duration::from_secs(5), || {
            let now = (self.to_server.arrivals(), self.to_client.arrivals());
            let moved = (now.0 - before.0, now.1 - before.1);
            if moved.0 > 2 && moved.1 > 2 { Ok(()) } else { Err(format!("arrived (server, client): {moved:?}")) }
        })
    }

    fn flowing(name: String, server: &Server, talk: impl FnOnce(&Tally, &AtomicBool) + Send + 'static) -> Result<Self> {
        let (to_client, stop) = <(Arc<Tally>, Arc<AtomicBool>)>::default();
        let thread = thread::spawn({
            let (to_client, stop) = (Arc::clone(&to_client), Arc::clone(&stop));
            move || talk(&to_client, &stop)
        });
        let session = Self { name, to_server: server.received(), to_client, stop, thread: Some(thread) };
        session.ensure_flowing()?;
        Ok(session)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the client of a session panicked");
        }
    }
}
