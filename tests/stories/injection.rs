//! Whatever Docker, services and certificates call themselves: every line that is printed is one record, and shows
//! what it holds.

use std::{
    io::Write,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    fake_docker::FakeDocker,
    lab::{Family::V4, Lab},
    netns::Netns,
    order,
    programs::{self, finish},
    scratch,
};
use serde_json::{Value, json};

/// Where a service of the node greets with [`HOSTILE`].
const GREETING: u16 = 7000;
/// A line that would be believed, colours, a title, a reversed and a hidden word, an alert for everybody, a page.
const HOSTILE: &str = "x\r\nRESULT   nothing unexpected is open\n\u{1b}[2J\u{1b}]0;t\u{7}\u{9b}31m\u{202e}nepo\u{2066}\
    \u{200b}\u{e0041}<!channel> @everyone <script>alert(1)</script> [a](https://evil.invalid) {0} ]]> %s $(id) `id`";
/// What a line of the story begins with.
const WORDS: [&str; 15] = [
    "SWEEP", "UNKNOWN", "NOTE", "LIAR", "OPEN", "MISSING", "AGENT", "CAUSE", "RULE", "WARNING", "RESCAN", "PROOF",
    "NO PROOF", "BLIND", "RESULT",
];

#[test]
fn every_line_is_one_record() -> Result<()> {
    let directory = scratch::directory()?;
    let socket = directory.path().join("docker.sock");
    let _docker = FakeDocker::serving(&socket, docker().into())?;
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let _greeting = Greeting::new(lab.node())?;
    let deployment =
        Deployment::new(&Settings { sweep: "80,7000,7443,8080,9000", docker_socket: &socket, ..Settings::default() })?;
    let agent = deployment.start_agent(&lab.wire)?;

    for format in ["table", "json", "jsonl", "sarif", "junit"] {
        let mut command = programs::scanner(lab.inet())?;
        command.args(["scan", "198.51.100.11", "--ports", "7000,8080", "--output", format]);
        let ended = finish(&mut command)?.expect_code(1)?;
        clean(format, &ended.stdout)?;
        clean(format, &ended.stderr)?;
        ensure!(ended.stdout.contains("7000") && ended.stdout.contains("x"), "{format}: {ended:?}");
        match format {
            "json" | "sarif" => drop(serde_json::from_str::<Value>(&ended.stdout)?),
            "jsonl" => ended.stdout.lines().try_for_each(|line| serde_json::from_str::<Value>(line).map(drop))?,
            _ => {}
        }
    }

    // Docker's words reach the story by the agent's report.
    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    clean("run", &ended.stdout)?;
    clean("run", &ended.stderr)?;
    for line in ended.stdout.lines() {
        ensure!(WORDS.iter().any(|word| line.starts_with(word)), "not a record: {line:?}");
        ensure!(line.len() < 8 << 10, "{} bytes in one line", line.len());
    }
    ensure!(ended.stdout.lines().filter(|line| line.starts_with("RESULT")).count() == 1, "{}", ended.stdout);
    ensure!(ended.stdout.contains("<!channel>"), "nobody was quoted, so nothing was shown: {}", ended.stdout);

    for words in [["explain", "9000/tcp"].as_slice(), &["explain", "8080/tcp"], &["status"]] {
        let ended = deployment.agent(&lab.wire, words)?.expect_code(0)?;
        clean("agent", &ended.stdout)?;
        clean("agent", &ended.stderr)?;
    }

    // An order with such words is refused, and its refusal is one line of the log.
    let mut body = order::order(1, &[(V4, "tcp", 8080)]);
    body["allow"] = json!([HOSTILE]);
    let refused = order::send(&deployment, &lab.wire, &body)?;
    ensure!(refused.status == 422, "{refused:?}");
    let log = agent.log();
    clean("the agent's log", &log)?;
    ensure!(log.contains("request refused") && log.lines().all(is_record), "{log}");
    Ok(())
}

/// Begins with its time.
fn is_record(line: &str) -> bool {
    line.split('T').next().is_some_and(|day| day.len() == 10 && day.starts_with("20"))
}

fn clean(what: &str, text: &str) -> Result<()> {
    let hostile = |character: &char| {
        (character.is_control() && *character != '\n')
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
            || matches!(character, '\u{e0000}'..='\u{e0fff}')
    };
    match text.chars().find(hostile) {
        None => Ok(()),
        Some(character) => anyhow::bail!("{what}: {character:?} in {text:?}"),
    }
}

/// An engine on which everything has a hostile name, of 10 kB where it may be that long.
fn docker() -> [(&'static str, Value); 6] {
    let long = format!("{HOSTILE}{}", "y".repeat(10_000));
    let labels = json!({
        "com.docker.swarm.service.name": HOSTILE, "com.docker.swarm.task.name": format!("{HOSTILE}.1.x"),
        "com.docker.stack.namespace": long,
    });
    [
        ("/info", json!({"Swarm": {"NodeID": "n", "LocalNodeState": "active", "ControlAvailable": true}})),
        (
            "/networks",
            json!([{"Name": HOSTILE, "Driver": "bridge", "IPAM": {"Config": [{"Subnet": "172.17.0.0/16"}]}}]),
        ),
        (
            "/containers/json",
            json!([{
                "Id": "c0ffee", "Names": [format!("/{long}")], "Image": HOSTILE, "Labels": labels,
                "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 9000, "Type": "tcp"}],
                "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
            }]),
        ),
        (
            "/services",
            json!([{
                "ID": "s0",
                "Spec": {"Name": HOSTILE, "Labels": labels, "TaskTemplate": {"ContainerSpec": {"Image": long}}},
                "Endpoint": {"Ports": [
                    {"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": 8080, "PublishMode": "ingress"},
                ]},
            }]),
        ),
        ("/nodes", json!([{"ID": "n", "Description": {"Hostname": HOSTILE}, "Status": {"Addr": "198.51.100.11"}}])),
        ("/tasks", json!([{"ID": "t0", "ServiceID": "s0", "NodeID": "n", "Slot": 1}])),
    ]
}

/// A service of the node that says [`HOSTILE`] to everybody.
struct Greeting {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Greeting {
    fn new(node: &Netns) -> Result<Self> {
        let listener = node.enter(|| Ok(TcpListener::bind(("0.0.0.0", GREETING))?))?;
        let socket = socket2::SockRef::from(&listener);
        // Bounds accept(), so that the thread sees the wish to stop.
        socket.set_read_timeout(Some(std::time::Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if let Ok((mut stream, _)) = listener.accept() {
                    stream.write_all(HOSTILE.trim_start_matches("x\r\n").as_bytes()).ok();
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
