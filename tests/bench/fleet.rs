//! One scanner and as many agents as a large swarm has: real processes in mode `observe`, each at an address of one node's.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    deployment::AGENT_PORT,
    lab::{Family, Wire},
    programs::{self, Running, built, finish},
    scratch,
    server::Server,
    wait::wait_for,
};
use nix::sys::resource::{UsageWho, getrusage};

const SIZES: [u16; 3] = [1, 50, 500];
const EXPOSED: u16 = 8080;
const SOON: Duration = Duration::from_secs(300);

pub(crate) fn measure() -> Result<()> {
    let [.., all] = SIZES;
    let wire = Wire::new()?;
    wire.inet.ip("route add 203.0.113.0/24 dev eth0")?;
    for number in 0..all {
        let address = match address(number) {
            IpAddr::V4(address) => format!("{address}/32"),
            IpAddr::V6(address) => format!("{address}/128 nodad"),
        };
        wire.node.ip(&format!("addr add {address} dev eth0"))?;
    }
    let _exposed = Family::BOTH.map(|family| Server::tcp(&wire.node, family.any(EXPOSED)));
    let directory = scratch::directory()?;
    certificates(directory.path(), all)?;
    let mut agents: Vec<Running> = Vec::new();
    for size in SIZES {
        for number in u16::try_from(agents.len())?..size {
            agents.push(agent(&wire, directory.path(), number)?);
        }
        wait_for("the agents", SOON, || {
            wire.node.enter(|| listen(size)).map_err(|error| format!("{error:#}: {}", agents[0].log()))
        })?;
        round(&wire, directory.path(), size)?;
    }
    drop(agents);
    every_port(&wire, all)
}

/// Sweep, orders and reports, of what has no memory yet.
fn round(wire: &Wire, directory: &Path, size: u16) -> Result<()> {
    let config = directory.join(format!("scanner-{size}.toml"));
    fs::write(&config, scanner_toml(size)?)?;
    let started = Instant::now();
    let ended = finish(programs::scanner(&wire.inet)?.args(["run", "--once", "--config"]).arg(&config))?;
    let took = started.elapsed();
    let reports = ended.stdout.lines().filter(|line| line.starts_with("AGENT") && line.contains("observed")).count();
    ensure!(reports == usize::from(size), "{reports} of {size} reports: {ended:?}");
    println!(
        "| a round over {size} nodes, their agents on the same two cores; the scanner's memory at most | {:.1} s; {} MiB | | |",
        took.as_secs_f64(),
        getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() >> 10
    );
    Ok(())
}

/// A scan of all ports of all nodes.
fn every_port(wire: &Wire, size: u16) -> Result<()> {
    let targets = (0..size).map(|number| address(number).to_string());
    let mut scan = programs::scanner(&wire.inet)?;
    scan.arg("scan").args(targets).args(["--rate", "1000000", "--rate-per-node", "1000000", "--no-identify"]);
    let started = Instant::now();
    let ended = finish(scan.args(["--allow", "8080/tcp", "--output", "json"]))?;
    let took = started.elapsed();
    let said: serde_json::Value = serde_json::from_str(&ended.stdout)?;
    let summary = &said["summary"];
    ensure!(summary["open"] == size && summary["complete"] == true, "{summary}");
    println!(
        "| {} targets, closed but for one port a node, all on one machine; memory at most | {:.0} s, {} probes; {} MiB | | |",
        summary["targets"],
        took.as_secs_f64(),
        summary["probes_sent"],
        getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() >> 10
    );
    Ok(())
}

fn certificates(directory: &Path, size: u16) -> Result<()> {
    let pki = |words: &[&str]| {
        let mut command = Command::new(built("deadlight-scanner")?);
        finish(command.arg("pki").args(words).arg("--dir").arg(directory))?.expect_code(0).map(drop)
    };
    pki(&["init"])?;
    pki(&["issue-scanner", "office-a"])?;
    (0..size).try_for_each(|number| pki(&["issue-agent", &format!("n{number}")]))
}

fn agent(wire: &Wire, directory: &Path, number: u16) -> Result<Running> {
    let (file, listen) = (directory.join(format!("n{number}.toml")), SocketAddr::new(address(number), AGENT_PORT));
    let state = directory.join(format!("state-{number}"));
    fs::write(
        &file,
        format!(
            "node = \"n{number}\"\nlisten = \"{listen}\"\nstate_dir = {state:?}\n\
             docker_socket = \"/nonexistent/docker.sock\"\n[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            directory.join("ca.crt"),
            directory.join(format!("agent-n{number}.crt")),
            directory.join(format!("agent-n{number}.key"))
        ),
    )?;
    let mut command = programs::agent(&wire.node)?;
    Running::start(command.arg("run").arg("--config").arg(file), &format!("agent-{number}"), directory)
}

fn listen(size: u16) -> Result<()> {
    for number in 0..size {
        let to = SocketAddr::new(address(number), AGENT_PORT);
        TcpStream::connect(to).with_context(|| to.to_string())?;
    }
    Ok(())
}

fn scanner_toml(size: u16) -> Result<String> {
    let mut config = format!(
        "[vantage]\nid = \"office-a\"\n[sweep]\ntcp = \"{AGENT_PORT},{EXPOSED}\"\nudp = \"\"\n\
         [store]\nurl = \"sqlite:deadlight-{size}.db\"\n\
         [[allow]]\nports = \"{AGENT_PORT}/tcp\"\nnodes = [\"*\"]\nowner = \"ops\"\nreason = \"agents\"\n\
         [tls]\nca = \"ca.crt\"\ncertificate = \"scanner-office-a.crt\"\nkey = \"scanner-office-a.key\"\n"
    );
    for number in 0..size {
        let agent = SocketAddr::new(address(number), AGENT_PORT);
        writeln!(
            config,
            "[[node]]\nname = \"n{number}\"\naddresses = [\"{}\"]\nagent = \"https://{agent}\"",
            address(number)
        )?;
    }
    Ok(config)
}

/// The first 450 over IPv4.
fn address(number: u16) -> IpAddr {
    let host = |number: u16| u8::try_from(number).unwrap_or(u8::MAX);
    match number {
        0..200 => Ipv4Addr::new(198, 51, 100, 20 + host(number)).into(),
        200..450 => Ipv4Addr::new(203, 0, 113, 1 + host(number - 200)).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 1, number).into(),
    }
}
