//! Many strangers at once, each from a network of its own.

use std::{
    fmt,
    io::ErrorKind,
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use deadlight_tests::lab::Lab;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName, version::TLS13};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};

/// What a stranger does once it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Says nothing, and comes again when it is shown out.
    Stalled,
    /// Says hello, has the agent answer with its certificate and signature, and then says nothing.
    ToTheCertificate,
    /// Begins a hello of 64 KiB, sends nearly all of it, and then nothing.
    EndlessHello,
    /// Comes once and says hello, a byte a second.
    Slow,
    /// Comes once and sends a request, a byte a second.
    SlowRequest,
    /// Says one of many things, hangs up and comes again.
    Brief,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stalled => "stalled",
            Self::ToTheCertificate => "stalled at the certificate",
            Self::EndlessHello => "in a hello that does not end",
            Self::Slow | Self::SlowRequest => "slow",
            Self::Brief => "brief",
        })
    }
}

/// A flood that lasts until it is stopped.
pub(super) struct Strangers {
    runtime: Runtime,
    shared: Arc<Shared>,
    started: Instant,
}

#[derive(Default)]
struct Shared {
    calls: AtomicU64,
    present: AtomicU64,
    stopped: AtomicBool,
}

/// Every address of this network is one of the internet's side.
pub(super) fn live_in(lab: &Lab) -> Result<()> {
    lab.inet().sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
    lab.inet().ip("-6 route add local 2001:db8:f000::/36 dev lo")
}

pub(super) fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

impl Strangers {
    /// Starts `count` of them; returns when each has tried to connect or is about to.
    pub(super) fn start(lab: &Lab, to: SocketAddr, kind: Kind, count: u16) -> Result<Self> {
        let (shared, hello) = (Arc::new(Shared::default()), Arc::new(hello()?));
        // The threads of the runtime stay where they were made.
        let runtime = lab.inet().enter(runtime)?;
        shared.present.store(count.into(), Ordering::Relaxed);
        for number in 0..count {
            runtime.spawn(stranger(number, to, kind, Arc::clone(&hello), Arc::clone(&shared)));
        }
        Ok(Self { runtime, shared, started: Instant::now() })
    }

    /// How often they have connected.
    pub(super) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// How many still stand there.
    pub(super) fn present(&self) -> u64 {
        self.shared.present.load(Ordering::Relaxed)
    }

    /// How long after the start the last had gone; none when some are left after `limit`.
    pub(super) fn all_gone(&self, limit: Duration) -> Result<Option<Duration>> {
        self.runtime.block_on(async {
            while self.present() > 0 {
                if self.started.elapsed() > limit {
                    return Ok(None);
                }
                sleep(Duration::from_millis(20)).await;
            }
            Ok(Some(self.started.elapsed()))
        })
    }

    /// How often they had connected, and how long it lasted.
    pub(super) fn stop(self) -> Result<(u64, Duration)> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let lasted = self.started.elapsed();
        self.runtime.shutdown_timeout(Duration::from_secs(10));
        Ok((self.shared.calls.load(Ordering::Relaxed), lasted))
    }
}

async fn stranger(number: u16, to: SocketAddr, kind: Kind, hello: Arc<Vec<u8>>, shared: Arc<Shared>) {
    let mut turn = usize::from(number);
    while !shared.stopped.load(Ordering::Relaxed) {
        match connect(number, to).await {
            Ok(stream) => {
                shared.calls.fetch_add(1, Ordering::Relaxed);
                behave(stream, kind, turn, &hello).await;
                turn += 1;
            }
            // Without a route, a port or a descriptor there is no use in haste.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
        if matches!(kind, Kind::Slow | Kind::SlowRequest) {
            break;
        }
    }
    shared.present.fetch_sub(1, Ordering::Relaxed);
}

async fn connect(number: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v6()?;
    // Of a /56 that nobody else has.
    let [high, low] = number.to_be_bytes().map(u16::from);
    socket.bind((Ipv6Addr::new(0x2001, 0xdb8, 0xf000 | high, low << 8, 0, 0, 0, 1), 0).into())?;
    timeout(Duration::from_secs(10), socket.connect(to)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// Until the agent hangs up; what it says is not looked at, and errors are an end too.
async fn behave(mut stream: TcpStream, kind: Kind, turn: usize, hello: &[u8]) {
    let said: [&[u8]; 5] =
        [b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", hello, &hello[..100]];
    let spoken = match kind {
        Kind::Stalled => Ok(()),
        Kind::ToTheCertificate => stream.write_all(hello).await,
        Kind::EndlessHello => stream.write_all(&endless_hello()).await,
        Kind::Slow | Kind::SlowRequest => {
            for byte in if kind == Kind::Slow { hello } else { REQUEST } {
                let written = stream.write_all(&[*byte]).await;
                let mut answer = [0; 64];
                match timeout(Duration::from_secs(1), stream.read(&mut answer)).await {
                    Err(_) if written.is_ok() => {}
                    _ => return,
                }
            }
            Ok(())
        }
        Kind::Brief => {
            let written = stream.write_all(said[turn % said.len()]).await;
            written.and(stream.shutdown().await)
        }
    };
    if spoken.is_ok() {
        let mut answer = [0; 4096];
        while matches!(stream.read(&mut answer).await, Ok(length) if length > 0) {}
    }
}

/// Longer than it is watched.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: node\r\nuser-agent: somebody who has a great deal of time\r\n\r\n";

/// The first words of a client; the agent can do nothing but answer them.
fn hello() -> Result<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("agent")?)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    Ok(hello)
}

/// Three records of 16 KiB, the first of which says that 64 KiB of a hello come.
fn endless_hello() -> Vec<u8> {
    let mut record = [0; 5 + 16 * 1024];
    record[..5].copy_from_slice(b"\x16\x03\x01\x40\x00");
    let mut hello = record.repeat(3);
    hello[5..9].copy_from_slice(b"\x01\x00\xff\xf0");
    hello
}
