//! Bytes on a socket: what a peer says at the agent's door, and what Docker says behind its own.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use axum::Router;
use deadlight_agent::api::{Slots, fuzzing, router};
use deadlight_agent::config::Config;
use deadlight_agent::explain::{self, Question};
use deadlight_agent::firewall::nftables::Guard;
use deadlight_agent::firewall::{Change, Desired, DockerRules, Firewall, FirewallError, Inspection};
use deadlight_agent::identity::Keyring;
use deadlight_agent::inventory::{Facts, docker as engine};
use deadlight_agent::node::Node;
use deadlight_scanner::pki::{Issued, Pki};
use deadlight_shared::tls::TlsPaths;
use deadlight_shared::wire::Explanation;
use deadlight_shared::{Identity, Name, Port, PortSet};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};

use crate::text::assert_lines;
use crate::world;

/// Between the bodies of Docker's answers; no JSON has it.
const SEPARATOR: u8 = 0xff;
/// The paths that are asked, in the order of the bodies.
const PATHS: [&str; 6] = ["/networks", "/info", "/containers/json", "/services", "/nodes", "/tasks"];

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

/// Requests of a peer that has proven who it is: whatever they are, the answer is none, or one of HTTP with JSON.
pub fn door(bytes: &[u8]) {
    static ROUTER: LazyLock<Router> = LazyLock::new(|| {
        let state_dir = DIRECTORY.path().join("state");
        let keyring = keyring(state_dir.clone());
        let outside = vec!["eth0".to_owned()];
        let docker_socket = PathBuf::from("/nonexistent/docker.sock");
        let config = Config { state_dir, outside, docker_socket, ..Config::default() };
        // No order is for it: what it would do costs as much as this machine has processes.
        let node = Node::new("nobody".parse().unwrap(), config, Box::new(Bare));
        router(Arc::new(node), Arc::new(keyring), Slots::new(Vec::new()))
    });
    let name: Name = "office-a".parse().unwrap();
    // Nor is any other question answered, for the same reason.
    let peer = if bytes.starts_with(b"PUT ") { Identity::Scanner(name) } else { Identity::Agent(name) };
    let said = RUNTIME.block_on(fuzzing::answered(bytes, peer, ROUTER.clone()));
    if said.is_empty() {
        return;
    }
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("HTTP/1."), "{said:?}");
    let (head, body) = said.split_once("\r\n\r\n").expect("a head");
    head.split("\r\n").for_each(crate::text::assert_line);
    if !body.is_empty() && head.contains("content-length") {
        serde_json::from_str::<serde_json::Value>(body).expect("a body of JSON");
    }
}

fn keyring(state_dir: PathBuf) -> Keyring {
    let (pki, now) = (Pki::at(&DIRECTORY.path().join("pki")), Timestamp::now());
    let ca = pki.init(now).unwrap().certificate;
    let Issued { certificate, key } = pki.issue(&Identity::Agent("nobody".parse().unwrap()), 7, now).unwrap();
    Keyring::load(state_dir, Some(&TlsPaths { ca, certificate, key })).unwrap()
}

/// Docker's answers: raw, or a body for each path. Facts that are made from them give rules that nft reads back, and
/// explanations that are text.
pub fn docker(bytes: &[u8]) {
    let (facts, networks) = RUNTIME.block_on(asked(bytes));
    if let Ok(networks) = networks {
        let mut desired = world::states(&"8080/tcp".parse().unwrap());
        let [.., desired] = &mut desired;
        *desired = Desired { docker_subnets: networks.subnets, peers: networks.peers, ..desired.clone() };
        let guard = Guard::desired(desired).expect("it is armed");
        assert_eq!(Guard::parse(&guard.render()).unwrap().0, guard);
    }
    let Ok(facts) = facts else { return };
    let published = facts.containers.iter().flat_map(|container| container.published.clone());
    let meshed = facts.services.iter().flatten().flat_map(|service| service.ingress.clone());
    let ports: PortSet = published.chain(meshed).collect();
    let facts = Facts { flows: Ok(Vec::new()), listeners: Ok(Vec::new()), docker: Ok(facts), addresses: Vec::new() };
    for port in ports.iter().take(8) {
        let cause = explain::cause(Question { port, address: None, from: None }, &facts, &DockerRules::default());
        assert_lines(&deadlight_shared::explained::text(&Explanation {
            schema: Explanation::SCHEMA.to_owned(),
            node: "n1".parse::<Name>().unwrap(),
            port,
            cause,
            path: Vec::new(),
            allowed_by: Vec::new(),
            closed: false,
            refused: None,
            rules: Vec::new(),
        }));
    }
}

type Answers = (Result<engine::DockerFacts, engine::DockerError>, Result<engine::Networks, engine::DockerError>);

async fn asked(bytes: &[u8]) -> Answers {
    let path = DIRECTORY.path().join("docker.sock");
    std::fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path).unwrap();
    let asking = async { (engine::gather(&path).await, engine::networks(&path).await) };
    tokio::select! {
        answers = asking => answers,
        () = serve(&listener, bytes) => unreachable!("it serves for ever"),
    }
}

/// Answers one request on each connection.
async fn serve(listener: &UnixListener, bytes: &[u8]) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4 << 10];
        let length = stream.read(&mut request).await.unwrap_or(0);
        let answer = answer(&request[..length], bytes);
        // Whether the client listens to the end is its own affair.
        stream.write_all(&answer).await.ok();
        stream.shutdown().await.ok();
    }
}

fn answer(request: &[u8], bytes: &[u8]) -> Vec<u8> {
    if bytes.starts_with(b"HTTP/") {
        return bytes.to_vec();
    }
    let line = String::from_utf8_lossy(request);
    let path = line.split(' ').nth(1).and_then(|path| path.split('?').next()).unwrap_or_default();
    let place = PATHS.iter().position(|asked| path.ends_with(asked));
    let body = place.and_then(|place| bytes.split(|byte| *byte == SEPARATOR).nth(place)).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A kernel without any rule, and without any care.
struct Bare;

impl Firewall for Bare {
    fn inspect(&self, _: &Desired) -> Result<Inspection, FirewallError> {
        Ok(Inspection::default())
    }

    fn apply(&self, _: &Change) -> Result<(), FirewallError> {
        Ok(())
    }

    fn lines_for(&self, port: Port, _: &Desired, _: &DockerRules) -> Vec<String> {
        vec![format!("close {port}")]
    }
}
