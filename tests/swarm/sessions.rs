//! Sessions that were open before the closing.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use deadlight_tests::{lab::Family, netns::Netns, wait::wait_for};

use crate::{
    lab::{NODES, on_each},
    swarm::{PATIENCE, Swarm},
};

/// What was under way when the rules came may take a while on emulated nodes; a session goes on for good.
const SILENT_WITHIN: Duration = Duration::from_secs(15);
const BEAT: Duration = Duration::from_millis(50);
/// What a server does with a session: it talks each beat, and keeps what it hears in a file of its own container.
/// A shell takes the input of what it puts in the background away, unless it is handed over.
const TALK: &str = "SYSTEM:'exec 3<&0; cat <&3 >>/heard & while echo beat; do sleep 0.1; done'";

/// TCP and UDP through the mesh: after the closing nothing arrives at the client, nor at the server.
pub(crate) fn fall_silent_both_ways(swarm: &Swarm) -> Result<()> {
    let on_a = "--constraint node.hostname==a";
    swarm.create_service(
        "chat",
        &format!("--publish 8080:8080 {on_a}"),
        &format!("socat TCP-LISTEN:8080,fork {TALK}"),
    )?;
    swarm.create_service(
        "calls",
        &format!("--publish 5514:5514/udp {on_a}"),
        &format!("socat UDP-LISTEN:5514,fork {TALK}"),
    )?;
    for service in ["chat", "calls"] {
        swarm.place_of(service)?;
    }
    // From the start of the agents on sessions are tracked.
    swarm.fleet.start_agents(swarm.lab())?;
    // The task is on the first node, so the sessions pass two.
    let through = &NODES[2];
    let tcp = Session::tcp(swarm.inet(), through.at(Family::V4, 8080))?;
    let udp = Session::udp(swarm.inet(), through.at(Family::V4, 5514))?;
    let counts =
        || -> Result<[u64; 4]> { Ok([tcp.received(), udp.received(), heard(swarm, "chat")?, heard(swarm, "calls")?]) };
    let flow = |what| {
        let before = counts()?;
        wait_for(what, PATIENCE, || match counts() {
            Ok(now) if now.iter().zip(before).all(|(now, before)| *now > before) => Ok(()),
            other => Err(format!("{before:?}, then {other:?} (received by TCP client, UDP client, servers)")),
        })
    };
    flow("both sessions, both ways")?;
    // Not by a scanner: the server of UDP starts a shell for each client, which may answer too late for a sweep.
    on_each(|node| swarm.fleet.agent(swarm.lab(), node, "harden --allow 80/tcp --once")?.expect_code(0))?;
    wait_for("silence for 40 beats", SILENT_WITHIN, || {
        let look = || counts().map_err(|error| format!("{error:#}"));
        let before = look()?;
        thread::sleep(BEAT * 40);
        let after = look()?;
        if after == before { Ok(()) } else { Err(format!("{before:?}, then {after:?} (as above)")) }
    })
}

fn heard(swarm: &Swarm, service: &str) -> Result<u64> {
    let node = &NODES[0];
    let pid = swarm.pid(node, &format!("label=com.docker.swarm.service.name={service}"))?;
    Ok(swarm.on(node, &format!("cat /proc/{pid}/root/heard 2>/dev/null | wc -c"))?.trim().parse()?)
}

/// A client that sends and receives each beat until dropped.
struct Session {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    fn tcp(from: &Netns, to: SocketAddr) -> Result<Self> {
        let mut stream = wait_for(&format!("{to}"), PATIENCE, || {
            from.enter(|| Ok(TcpStream::connect(to)?)).map_err(|error| format!("{error:#}"))
        })?;
        stream.set_read_timeout(Some(BEAT))?;
        // A full buffer must not block: the session goes on trying, as a real one would.
        stream.set_write_timeout(Some(BEAT))?;
        Ok(Self::start(move |buffer| {
            stream.write_all(b"beat\n").ok();
            stream.read(buffer).is_ok_and(|length| length > 0)
        }))
    }

    fn udp(from: &Netns, to: SocketAddr) -> Result<Self> {
        let socket = from.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(BEAT))?;
        Ok(Self::start(move |buffer| {
            socket.send(b"beat\n").ok();
            socket.recv(buffer).is_ok()
        }))
    }

    fn start(mut beat: impl FnMut(&mut [u8]) -> bool + Send + 'static) -> Self {
        let (received, stop) = <(Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let thread = thread::spawn({
            let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    match beat(&mut [0; 512]) {
                        true => _ = received.fetch_add(1, Ordering::SeqCst),
                        // Refused at once, or waited for in vain.
                        false => thread::sleep(BEAT),
                    }
                }
            }
        });
        Self { received, stop, thread: Some(thread) }
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
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
