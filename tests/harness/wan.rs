//! A line with delay and loss between two namespaces: this kernel has no netem.

use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt},
};
use pnet::datalink;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{lab::plug, netns::Netns, process::run};

/// Frames handed over in one call.
const BATCH: usize = 64;
/// The longest frame; the namespaces send nothing larger.
const LONGEST: usize = 1_600;
/// Room for all that comes in while the relay is not scheduled.
const ROOM: usize = 64 << 20;
/// From linux/if_ether.h: frames of every protocol.
const ETH_P_ALL: u16 = 3;

/// What the line does to frames, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Weather {
    /// How long a frame is on its way.
    pub delay: Duration,
    /// Which part of them is lost.
    pub loss: f64,
    /// Decides which.
    pub seed: u64,
}

/// Two wires that end in a namespace of its own, and what carries frames between them until dropped.
#[derive(Debug)]
pub struct Wan {
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    relays: Vec<JoinHandle<()>>,
    _between: Netns,
}

impl Wan {
    /// Joins `here` and `there`; both ends are named `name`.
    pub fn new(here: &Netns, there: &Netns, name: &str, weather: Weather) -> Result<Self> {
        let between = Netns::new("wan")?;
        plug(here, name, &between, "here")?;
        plug(there, name, &between, "there")?;
        // A virtual link leaves checksums to the hardware that it has not: a relayed frame would be thrown away.
        for end in [here, there] {
            run(end.command("ethtool").args(["-K", name, "tx", "off"]))?;
        }
        let (near, far) = between.enter(|| Ok((open("here")?, open("there")?)))?;
        let (stop, lost) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let relays = [(near.try_clone()?, far.try_clone()?, 1), (far, near, 2)].map(|(from, to, direction)| {
            let relay = Relay {
                from,
                to,
                weather,
                rng: fastrand::Rng::with_seed(weather.seed * 2 + direction),
                flying: VecDeque::new(),
                lost: Arc::clone(&lost),
            };
            let stop = Arc::clone(&stop);
            thread::spawn(move || relay.run(&stop))
        });
        Ok(Self { stop, lost, relays: relays.into(), _between: between })
    }

    /// Frames that were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for relay in self.relays.drain(..) {
            if relay.join().is_err() {
                eprintln!("a relay panicked");
            }
        }
    }
}

/// A packet socket of one interface that sees what comes in and not what goes out.
fn open(interface: &str) -> Result<Socket> {
    let socket =
        Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(Protocol::from(i32::from(ETH_P_ALL.to_be()))))
            .context("open a packet socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
    setsockopt(&socket, sockopt::SndBuf, &ROOM)?;
    // linux/filter.h: the type of packet is at an address of its own; 4 is "outgoing".
    let type_of_packet = SockFilter::new(0x28, 0, 0, 0xffff_f000 + 4);
    let is_outgoing = SockFilter::new(0x15, 0, 1, 4);
    let (refuse, take) = (SockFilter::new(0x06, 0, 0, 0), SockFilter::new(0x06, 0, 0, u32::MAX));
    socket.attach_filter(&[type_of_packet, is_outgoing, refuse, take])?;
    let found = datalink::interfaces().into_iter().find(|found| found.name == interface);
    let found = found.with_context(|| format!("no interface {interface}"))?;
    // The crate binds the socket to the interface; we go on with the socket itself.
    let config = datalink::Config {
        socket_fd: Some(socket.try_clone()?.into_raw_fd()),
        promiscuous: false,
        ..Default::default()
    };
    drop(datalink::channel(&found, config).context("bind a packet socket")?);
    Ok(socket)
}

/// One direction.
struct Relay {
    from: Socket,
    to: Socket,
    weather: Weather,
    rng: fastrand::Rng,
    flying: VecDeque<(Instant, Vec<u8>)>,
    lost: Arc<AtomicU64>,
}

impl Relay {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let came = self.take(now);
            let went = self.hand_over(now);
            if !came && !went {
                self.wait(now);
            }
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let mut buffers = [[0; LONGEST]; BATCH];
        let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
        let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
        let received = recvmmsg(self.from.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_DONTWAIT, None);
        let Ok(frames) = received else { return false };
        let mut any = false;
        for frame in frames {
            any = true;
            let Some(bytes) = frame.iovs().next() else { continue };
            if self.rng.f64() < self.weather.loss && !is_neighbour_discovery(bytes) {
                self.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.flying.push_back((now + self.weather.delay, bytes.to_vec()));
        }
        any
    }

    fn hand_over(&mut self, now: Instant) -> bool {
        let due = self.flying.iter().take(BATCH).take_while(|(due, _)| *due <= now).count();
        if due == 0 {
            return false;
        }
        let slices: Vec<_> = self.flying.iter().take(due).map(|(_, frame)| [IoSlice::new(frame)]).collect();
        let mut headers = MultiHeaders::<()>::preallocate(due, None);
        let nowhere = [None; BATCH];
        let result = sendmmsg(self.to.as_raw_fd(), &mut headers, &slices, nowhere, [], MsgFlags::MSG_DONTWAIT);
        let sent = match result.map(Iterator::count) {
            Ok(sent) => sent,
            Err(Errno::EAGAIN | Errno::ENOBUFS) => 0,
            // The other end is gone: so are its frames.
            Err(_) => due,
        };
        drop(slices);
        self.flying.drain(..sent);
        true
    }

    fn wait(&self, now: Instant) {
        let pause =
            self.flying.front().map_or(Duration::from_millis(20), |(due, _)| due.saturating_duration_since(now));
        if pause < Duration::from_millis(1) {
            thread::sleep(pause);
            return;
        }
        let mut waiting = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        let milliseconds = u8::try_from(pause.as_millis()).unwrap_or(u8::MAX);
        poll(&mut waiting, PollTimeout::from(milliseconds)).ok();
    }
}

/// ARP, and ICMPv6 from router solicitation to redirect.
fn is_neighbour_discovery(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x06]) => true,
        Some([0x86, 0xdd]) => frame.get(20) == Some(&58) && matches!(frame.get(54), Some(133..=137)),
        _ => false,
    }
}
