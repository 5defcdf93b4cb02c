//! `make record OLD=REVISION`: what a version says and leaves behind, for `tests/fixtures/versions/`. Its two programs play
//! the loop; who sits between them writes down what crosses the wire.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use deadlight_shared::tls::{Credentials, TlsPaths};
use deadlight_tests::{
    deployment::{AGENT_PORT, Deployment, NODE, Settings, VANTAGE},
    docker_rules::{Backend::Nft, ForwardPolicy::Drop, Layout::V26},
    hostile::request,
    lab::{Family::V4, INGRESS, Lab},
    programs::{agent, finish, scanner},
    test_ca::Validity,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

const WIRE: [(&str, &str, &str); 2] =
    [("PUT /v1/exposures", "order.json", "report.json"), ("GET /v1/status", "", "status.json")];

fn main() -> Result<()> {
    let out = PathBuf::from(env::args_os().nth(1).context("usage: deadlight-record DIRECTORY")?);
    fs::create_dir_all(&out)?;
    let lab = Lab::new(V26, Nft, Drop)?;
    let deployment = Deployment::new(&Settings::default())?;
    deployment.know_operator()?;
    deployment.sign_allowlist()?;
    let running = deployment.start_agent(&lab.wire)?;
    let between = Between { lab: &lab, deployment: &deployment, out: &out };

    let listener = lab.inet().enter(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
    let config = deployment.path("scanner.toml");
    let text = fs::read_to_string(&config)?;
    let ours = format!("\"https://{}\"\ncontrol = \"{AGENT_PORT}/tcp\"", listener.local_addr()?);
    fs::write(&config, text.replace(&format!("\"https://{}\"", V4.node(AGENT_PORT)), &ours))?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let passing = scope.spawn(|| between.pass(&listener, &is_over));
        let ended = deployment.scanner(&lab.wire, &["run", "--once"]);
        is_over.store(true, Ordering::Relaxed);
        lab.inet().enter(|| Ok(TcpStream::connect(listener.local_addr()?)?))?;
        passing.join().map_err(|_| anyhow::anyhow!("who sits between failed"))??;
        ended?.expect_code(0).map(drop)
    })?;

    between.keep("explanation.json", &between.answer("GET", &format!("/v1/explain/tcp/{INGRESS}"), "")?)?;
    let mut order: Value = serde_json::from_slice(&fs::read(out.join("order.json"))?)?;
    order["later"] = json!(1);
    between.keep("unknown_in_order.json", &between.answer("PUT", "/v1/exposures", &order.to_string())?)?;
    order["findings"][0]["later"] = order.as_object_mut().and_then(|order| order.remove("later")).unwrap_or_default();
    between.keep("unknown_in_finding.json", &between.answer("PUT", "/v1/exposures", &order.to_string())?)?;
    let certificate = r#"{"later": 1}"#;
    between.keep("unknown_in_certificate.json", &between.answer("PUT", "/v1/certificate", certificate)?)?;
    drop(running);

    fs::copy(deployment.path("state/ledger.json"), out.join("ledger.json")).context("keep the ledger")?;
    for name in ["permits.json", "operator.pub", "registry.json", "ca.crt"] {
        fs::copy(deployment.path(name), out.join(name)).with_context(|| format!("keep {name}"))?;
    }
    // Versions before the database have none.
    if deployment.path("deadlight.db").exists() {
        let copy = out.join("deadlight.db");
        let copy = copy.to_str().context("a path of other than UTF-8")?;
        deployment.scanner(&lab.wire, &["backup", copy])?.expect_code(0)?;
    }
    let target = V4.node(0).ip().to_string();
    for output in ["json", "jsonl"] {
        let mut scan = scanner(lab.inet())?;
        let scan = finish(scan.args(["scan", &target, "--ports", "22,80,8080,9999", "--output", output]))?;
        fs::write(out.join(format!("scan.{output}")), scan.stdout)?;
    }
    for (mut program, name) in [(agent(lab.node())?, "agent.toml"), (scanner(lab.inet())?, "scanner.toml")] {
        fs::write(out.join(name), finish(program.arg("--print-config"))?.expect_code(0)?.stdout)?;
    }
    Ok(())
}

struct Between<'a> {
    lab: &'a Lab,
    deployment: &'a Deployment,
    out: &'a Path,
}

impl Between<'_> {
    /// Plays the agent to the scanner and the scanner to the agent, until it `is_over`.
    fn pass(&self, listener: &TcpListener, is_over: &AtomicBool) -> Result<()> {
        let file = |end| self.deployment.path(&format!("agent-{NODE}.{end}"));
        let paths = TlsPaths { ca: self.deployment.path("ca.crt"), certificate: file("crt"), key: file("key") };
        let config = Arc::new(Credentials::load(&paths)?.server_config()?);
        for socket in listener.incoming() {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            self.pass_one(&config, socket?).context("pass a request on")?;
        }
        Ok(())
    }

    fn pass_one(&self, config: &Arc<ServerConfig>, socket: TcpStream) -> Result<()> {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(config))?, socket);
        let mut reader = BufReader::new(&mut stream);
        let (mut first, mut length) = (String::new(), 0);
        // Whoever only tries the port says nothing.
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse()?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body = String::from_utf8(body)?;
        let answer = self.answer(method, path, &body)?;
        if let Some((_, asked, answered)) = WIRE.iter().find(|(what, ..)| *what == format!("{method} {path}")) {
            if !asked.is_empty() {
                self.keep(asked, &body)?;
            }
            self.keep(answered, &answer)?;
        }
        let length = answer.len();
        write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{answer}")?;
        stream.conn.send_close_notify();
        Ok(stream.flush()?)
    }

    /// What the agent itself answers.
    fn answer(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let scanner = self.deployment.identity(&format!("spiffe://deadlight/scanner/{VANTAGE}"), Validity::Current)?;
        let response = request(self.lab.inet(), V4.node(AGENT_PORT), Some(scanner), method, path, body)?;
        let (_, answer) = response.text.split_once("\r\n\r\n").context("an answer without an end of its head")?;
        ensure!(!answer.is_empty(), "{method} {path}: {}", response.text);
        Ok(answer.to_owned())
    }

    fn keep(&self, name: &str, json: &str) -> Result<()> {
        let value: Value = serde_json::from_str(json).with_context(|| format!("{name}: {json}"))?;
        Ok(fs::write(self.out.join(name), serde_json::to_string_pretty(&value)? + "\n")?)
    }
}
