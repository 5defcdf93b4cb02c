//! The door with real sockets and real TLS, on loopback.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::routing::get;
use deadlight_shared::tls::{Credentials, TlsPaths};
use deadlight_shared::wire::Callers;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Server, Slots};

const AGENT: &str = "spiffe://deadlight/agent/n1";
const SCANNER: &str = "spiffe://deadlight/scanner/office-a";
/// For strangers.
const SLOTS: usize = 256;
const ASK: &[u8] = b"GET /ok HTTP/1.1\r\nhost: agent\r\n\r\n";
const PANIC: &[u8] = b"GET /panic HTTP/1.1\r\nhost: agent\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_one_connection_and_is_counted() {
    let site = Site::start();
    for _ in 0..100 {
        assert_eq!(site.ask(Some(&site.scanner), PANIC).await, b"");
    }
    assert!(site.ask(Some(&site.scanner), ASK).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
    let callers = site.stop().await;
    assert_eq!(callers, Callers { proven: 101, panics: 100, ..Callers::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stranger_reaches_the_http_parser() {
    let site = Site::start();
    let hello = site.client_hello();
    let said: [&[u8]; 7] = [
        b"",
        ASK,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff",
        &[0; 4096],
        &hello,
        &hello[..hello.len() / 2],
    ];
    for bytes in said {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        // A reset is an end too, and may come before all is said.
        stream.write_all(bytes).await.ok();
        stream.shutdown().await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        assert!(!answer.windows(5).any(|window| window == b"HTTP/"), "{bytes:?}: {answer:?}");
    }
    for identity in [None, Some(&site.deployment.foreign(SCANNER))] {
        assert_eq!(site.ask(identity, ASK).await, b"");
    }
    assert_eq!(site.heard(), 0);
    assert!(site.ask(Some(&site.scanner), ASK).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert_eq!(site.heard(), 1);
    let callers = site.stop().await;
    assert_eq!(callers, Callers { strangers: said.len() as u64 + 2, proven: 1, ..Callers::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scanner_with_a_wrong_certificate_hears_why() {
    let site = Site::start();
    // The foreign CA has the name of the deployment's.
    for (identity, why) in [(None, "CertificateRequired"), (Some(&site.deployment.foreign(SCANNER)), "DecryptError")] {
        let mut stream = site.connect(identity).await.unwrap();
        let end = stream.read_u8().await.unwrap_err();
        assert!(end.to_string().contains(why), "{end}, not {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_not_spoken() {
    let site = Site::start();
    let answer = site.ask(Some(&site.scanner), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
    assert_eq!(site.heard(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_wait_make_room_for_newer_ones() {
    let site = Site::start();
    // From many networks: all of 127.0.0.0/8 is this machine.
    let mut waiting = Vec::new();
    for number in 0..300_u16 {
        let [network, host] = number.to_be_bytes();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 1 + network, host, 1), 0).into()).unwrap();
        waiting.push(socket.connect(site.address).await.unwrap());
    }
    assert!(site.ask(Some(&site.scanner), ASK).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
    for stream in &mut waiting[..300 - SLOTS] {
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0, "the oldest are gone");
    }
    let callers = site.slots.callers();
    assert_eq!((callers.proven, callers.evicted), (1, 300 - SLOTS as u64 + 1));
}

/// A running server, and what a scanner needs to ask it.
struct Site {
    address: SocketAddr,
    deployment: Deployment,
    scanner: Credentials,
    slots: Slots,
    heard: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Site {
    fn start() -> Self {
        let deployment = Deployment::new();
        let heard = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&heard);
        let router = Router::new()
            .route("/ok", get(async || "well"))
            .route("/panic", get(async || -> &'static str { panic!("as asked") }))
            .layer(axum::middleware::map_request(move |request: axum::extract::Request| {
                counter.fetch_add(1, Ordering::Relaxed);
                std::future::ready(request)
            }));
        let tls = Arc::new(deployment.credentials(AGENT).server_config().unwrap());
        let (slots, (_keep, tls)) = (Slots::of(Vec::new(), SLOTS), watch::channel(tls));
        let server = Server::bind((Ipv4Addr::LOCALHOST, 0).into(), tls, router, slots.clone()).unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async move { drop(stopped.await) }));
        Self { address, scanner: deployment.credentials(SCANNER), deployment, slots, heard, stop, running }
    }

    /// What the agent says before it hangs up.
    async fn ask(&self, identity: Option<&Credentials>, request: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        if let Ok(mut stream) = self.connect(identity).await {
            stream.write_all(request).await.ok();
            stream.read_to_end(&mut answer).await.ok();
        }
        answer
    }

    async fn connect(&self, identity: Option<&Credentials>) -> io::Result<TlsStream<TcpStream>> {
        let expected = AGENT.parse().unwrap();
        let mut config = identity.unwrap_or(&self.scanner).client_config(expected).unwrap();
        if identity.is_none() {
            config.client_auth_cert_resolver = Arc::new(Nobody);
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    fn client_hello(&self) -> Vec<u8> {
        let config = self.scanner.client_config(AGENT.parse().unwrap()).unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut hello = Vec::new();
        connection.write_tls(&mut hello).unwrap();
        hello
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Who came, when all have ended.
    async fn stop(self) -> Callers {
        self.stop.send(()).unwrap();
        self.running.await.unwrap();
        self.slots.callers()
    }
}

/// Has no certificate.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Two CAs in a directory: the deployment's, and one that nobody has heard of.
struct Deployment {
    directory: TempDir,
    own: Issuer<'static, KeyPair>,
    other: Issuer<'static, KeyPair>,
}

impl Deployment {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [(own, certificate), (other, _)] = [ca(), ca()];
        fs::write(directory.path().join("ca.crt"), certificate).unwrap();
        Self { directory, own, other }
    }

    fn credentials(&self, uri: &str) -> Credentials {
        self.issue(&self.own, uri)
    }

    /// Knows the deployment's CA, and has a certificate of another.
    fn foreign(&self, uri: &str) -> Credentials {
        self.issue(&self.other, uri)
    }

    fn issue(&self, issuer: &Issuer<'static, KeyPair>, uri: &str) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let [ca, certificate, secret] = ["ca.crt", "own.crt", "own.key"].map(|name| self.directory.path().join(name));
        fs::write(&certificate, params.signed_by(&key, issuer).unwrap().pem()).unwrap();
        fs::write(&secret, key.serialize_pem()).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        Credentials::load(&TlsPaths { ca, certificate, key: secret }).unwrap()
    }
}

fn ca() -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), certificate)
}
