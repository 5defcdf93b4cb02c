//! Deadlight and its peers: how each is started, and how its words are read.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    process::{Command, Stdio},
};

use anyhow::Result;
use deadlight_tests::{netns::Netns, programs};
use serde_json::Value;

use super::lab::Target;

/// What all programs are asked to do.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) addresses: Vec<IpAddr>,
    /// As `1-65535`.
    pub(crate) ports: String,
    pub(crate) udp: bool,
}

/// A program with its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// At a rate, by SYN.
    Deadlight(u32),
    /// At a rate, by connect.
    DeadlightConnect(u32),
    /// At a least rate.
    Nmap(u32),
    NmapConnect,
    Masscan(u32),
    RustScan,
}

impl Program {
    /// Name and flags, as the table shows them.
    pub(crate) fn name(self, udp: bool) -> String {
        match self {
            Self::Deadlight(rate) if udp => format!("**deadlight** `--rate {rate}`"),
            Self::Deadlight(rate) => format!("**deadlight** `--method syn --rate {rate}`"),
            Self::DeadlightConnect(rate) => format!("**deadlight** `--method connect --rate {rate}`"),
            Self::Nmap(rate) => format!("nmap `{} -T4 --min-rate {rate}`", if udp { "-sU" } else { "-sS" }),
            Self::NmapConnect => "nmap `-sT -T4 --min-rate 10000`".to_owned(),
            Self::Masscan(rate) => format!("masscan `--rate {rate} --wait 3`"),
            Self::RustScan => "rustscan `-b 4500 -t 1500`".to_owned(),
        }
    }

    /// Whether it can be started here.
    pub(crate) fn is_here(self) -> bool {
        let program = match self {
            Self::Deadlight(_) | Self::DeadlightConnect(_) => return true,
            Self::Nmap(_) | Self::NmapConnect => "nmap",
            Self::Masscan(_) => "masscan",
            Self::RustScan => "rustscan",
        };
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    pub(crate) fn command(self, scanner: &Netns, question: &Question) -> Result<Command> {
        let Question { addresses, ports, udp } = question;
        let targets: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let v6 = addresses.iter().any(IpAddr::is_ipv6);
        let mut words: Vec<String> = Vec::new();
        let mut add = |text: &str| words.extend(text.split_whitespace().map(str::to_owned));
        let command = match self {
            Self::Deadlight(rate) | Self::DeadlightConnect(rate) => {
                let method = if matches!(self, Self::Deadlight(_)) { "syn" } else { "connect" };
                let ports = if *udp { format!("{ports}/udp") } else { ports.clone() };
                add(&format!("scan --ports {ports} --method {method} --rate {rate} --no-identify --output jsonl"));
                programs::scanner(scanner)?
            }
            Self::Nmap(_) | Self::NmapConnect => {
                let kind = match self {
                    Self::NmapConnect => "-sT",
                    _ if *udp => "-sU",
                    _ => "-sS",
                };
                let rate = if let Self::Nmap(rate) = self { rate } else { 10_000 };
                add(&format!("{kind} -n -Pn -T4 --min-rate {rate} -p {ports} -oG -"));
                add(if v6 { "-6" } else { "" });
                scanner.command("nmap")
            }
            Self::Masscan(rate) => {
                let ports = if *udp { format!("U:{ports}") } else { ports.clone() };
                add(&format!("-p{ports} --rate {rate} --wait 3 -oL -"));
                scanner.command("masscan")
            }
            Self::RustScan => {
                add(&format!("-r {ports} --no-config --accessible -g -b 4500 -t 1500 -a"));
                scanner.command("rustscan")
            }
        };
        let mut command = command;
        command.args(words);
        match self {
            Self::RustScan => command.arg(targets.join(",")),
            _ => command.args(targets),
        };
        Ok(command)
    }

    /// The open ports that it printed.
    pub(crate) fn open(self, text: &str) -> BTreeSet<Target> {
        match self {
            Self::Deadlight(_) | Self::DeadlightConnect(_) => text.lines().filter_map(ours).collect(),
            Self::Nmap(_) | Self::NmapConnect => text.lines().flat_map(nmap).collect(),
            Self::Masscan(_) => text.lines().filter_map(masscan).collect(),
            Self::RustScan => text.lines().flat_map(rustscan).collect(),
        }
    }
}

fn ours(line: &str) -> Option<Target> {
    let seen: Value = serde_json::from_str(line).ok()?;
    let open = seen["state"] == "open";
    let target = (seen["address"].as_str()?.parse().ok()?, u16::try_from(seen["port"].as_u64()?).ok()?);
    open.then_some(target)
}

/// `Host: 198.51.100.11 ()  Ports: 22/open/tcp//ssh///, …`
fn nmap(line: &str) -> Vec<Target> {
    let Some((host, ports)) = line.strip_prefix("Host: ").and_then(|line| line.split_once("Ports: ")) else {
        return Vec::new();
    };
    let address = host.split_whitespace().next().and_then(|address| address.parse().ok());
    let open = |item: &str| {
        let (port, rest) = item.trim().split_once('/')?;
        rest.starts_with("open/").then_some((address?, port.parse().ok()?))
    };
    ports.split(',').filter_map(open).collect()
}

/// `open tcp 80 198.51.100.11 1700000000`
fn masscan(line: &str) -> Option<Target> {
    let words: Vec<_> = line.split_whitespace().collect();
    match words[..] {
        ["open", _, port, address, ..] => Some((address.parse().ok()?, port.parse().ok()?)),
        _ => None,
    }
}

/// `198.51.100.11 -> [22,80]`
fn rustscan(line: &str) -> Vec<Target> {
    let Some((address, ports)) = line.split_once(" -> [") else { return Vec::new() };
    let Ok(address) = address.trim().parse::<IpAddr>() else { return Vec::new() };
    ports.trim_end_matches(']').split(',').filter_map(|port| Some((address, port.trim().parse().ok()?))).collect()
}
