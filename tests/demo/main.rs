//! `make demo`: the whole loop on a throw-away node with a real dockerd, told in plain words. With the name of a file it is
//! drawn there.

mod picture;

use std::{
    env,
    io::{self, IsTerminal as _},
    path::Path,
    process::{Command, Stdio},
};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, ensure};
use deadlight_scanner::config::Config;
use deadlight_shared::allowlist::today;
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy},
    dockerd::Dockerd,
    lab::{Family, INGRESS, Wire},
    page::Served,
    process::run,
    programs,
    scratch::sweep_stale,
};
use jiff::Timestamp;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
};

const TITLE: Style = AnsiColor::Cyan.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();
const ALLOW: &str = "80,2377,7946/tcp";

fn main() -> Result<()> {
    if let Some(file) = env::args_os().nth(1) {
        return picture::draw(Path::new(&file));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _context = runtime.enter();
    // With handlers in place an interrupt ends the program under way, whose failure ends the demo
    // through its clean-up, instead of ending the demo before it.
    let _interrupt = signal(SignalKind::interrupt())?;
    let _terminate = signal(SignalKind::terminate())?;
    sweep_stale()?;
    tell(&runtime)?;
    anstream::println!("\n{GOOD}Done.{GOOD:#} Everything above happened in network namespaces that are gone now.");
    Ok(())
}

fn tell(runtime: &Runtime) -> Result<()> {
    title("A node, a real dockerd in swarm mode, and a service nobody meant to publish");
    let wire = Wire::new()?;
    let mut dockerd = Dockerd::start(&wire, Backend::Nft, ForwardPolicy::Drop)?;
    say("docker service create --name stats --publish 8080:80 …");
    dockerd.create_service("stats", INGRESS)?;
    say("docker service create --name web --publish 80:80 …      (this one is meant to be public)");
    dockerd.create_service("web", 80)?;
    stranger(&wire, "before")?;

    title("1. From outside: what is open that should not be?");
    let mut scan = programs::scanner(&wire.inet)?;
    scan.args(["scan", "198.51.100.11", "2001:db8:51::11", "--ports", "1-10000", "--allow", ALLOW]);
    show(&mut scan, "deadlight-scanner", 1)?;

    title("2. On the node: the agent starts, and can say why");
    let docker_socket = dockerd.socket();
    let deployment = Deployment::new(&Settings { allow: ALLOW, docker_socket: &docker_socket, ..Settings::default() })?;
    let agent = deployment.start_agent(&wire)?;
    on_node(&deployment, &wire, &["explain", "8080/tcp", "--address", "198.51.100.11"], 0)?;

    title("3. The loop: found, explained, closed, proven closed");
    let mut once = programs::scanner(&wire.inet)?;
    once.args(["run", "--once", "--config"]).arg(deployment.path("scanner.toml"));
    show(&mut once, "deadlight-scanner", 0)?;
    stranger(&wire, "after")?;

    title("4. Docker puts its wide rule back. It does not matter");
    say("docker service update --force stats      (dockerd inserts its ACCEPT for the whole world again)");
    dockerd.update_force("stats")?;
    stranger(&wire, "after the update")?;

    title("5. What is remembered, for whoever looks two minutes a week");
    let mut status = programs::scanner(&wire.inet)?;
    status.args(["status", "--config"]).arg(deployment.path("scanner.toml"));
    show(&mut status, "deadlight-scanner", 0)?;
    runtime.block_on(page(&deployment.path("scanner.toml")))?;

    title("6. And it can be undone without a trace");
    on_node(&deployment, &wire, &["revert", "--all"], 0)?;
    drop(agent);
    Ok(())
}

/// The page that `[web]` makes `run` show, here on this machine's loopback, for as long as somebody at a terminal wants it.
async fn page(path: &Path) -> Result<()> {
    let config = Config::load(path, today(Timestamp::now()))?;
    let page = Served::start(config, None).await?;
    let url = format!("http://{}/", page.address);
    let mut curl = Command::new("curl");
    curl.args(["-fsS", "--noproxy", "*", &url]);
    let text = spawn_blocking(move || run(&mut curl)).await??;
    let sentence = text.split_once("<h1").and_then(|(_, rest)| rest.split_once('>')?.1.split_once('<'));
    let (sentence, _) = sentence.context("the page has no title")?;
    anstream::println!("   the page: {GOOD}{url}{GOOD:#} says: {sentence}   (pictures: docker/pictures)");
    if io::stdin().is_terminal() {
        anstream::println!("   Enter goes on, and ends the page.");
        spawn_blocking(|| io::stdin().read_line(&mut String::new())).await??;
    }
    Ok(())
}

/// What somebody on the internet gets from the two services.
fn stranger(wire: &Wire, when: &str) -> Result<()> {
    for (family, port) in [(Family::V4, INGRESS), (Family::V6, INGRESS), (Family::V4, 80)] {
        let answer = tcp_answer(&wire.inet, family.node(port))?;
        let expected = port == 80 || when == "before";
        let open = matches!(answer, Answer::Data | Answer::OpenNoData);
        ensure!(open == expected, "{when}: {port}/tcp over {family} answers {answer:?}");
        let (style, word) = match (open, port) {
            (true, 80) => (GOOD, "open, as it should be"),
            (true, _) => (BAD, "OPEN to the whole internet"),
            (false, _) => (GOOD, "silent"),
        };
        anstream::println!("   a stranger asks for {port}/tcp over {family}: {style}{word}{style:#}");
    }
    Ok(())
}

fn on_node(deployment: &Deployment, wire: &Wire, words: &[&str], expected: i32) -> Result<()> {
    let mut agent = programs::agent(&wire.node)?;
    agent.args(words).arg("--config").arg(deployment.path("agent.toml"));
    show(&mut agent, "deadlight-agent", expected)
}

/// Runs a program with its output on ours.
fn show(command: &mut Command, name: &str, expected: i32) -> Result<()> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let from = words.iter().position(|word| word.ends_with(name)).map_or(0, |program| program + 1);
    say(&format!("{name} {}", words[from..].join(" ")));
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start {name}"))?;
    ensure!(status.code() == Some(expected), "{name} ended with {status}, not with {expected}");
    Ok(())
}

fn title(text: &str) {
    anstream::println!("\n{TITLE}{text}{TITLE:#}");
}

fn say(command: &str) {
    anstream::println!("   {DIM}$ {command}{DIM:#}");
}
