//! Whatever the policy and the ledger say, no rule that is written matches a protected port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::thread;

use deadlight_shared::{Port, Protocol};
use fastrand::Rng;
use jiff::Timestamp;

use super::Node;
use crate::config::{Config, SwarmControl};
use crate::firewall::fake::Fake;
use crate::firewall::iptables::{self, Family, Save};
use crate::firewall::kernel::{Table, WAYS, accepted, restored};
use crate::firewall::nftables::Guard;
use crate::inventory::{Listener, Process};
use crate::ledger::{Closure, Ledger, Origin, Permitted};

/// Policies, each with ports that shall be closed; an optimized build draws a million in half a minute.
const DRAWS: u64 = if cfg!(debug_assertions) { 50_000 } else { 1_000_000 };
const THREADS: u64 = 2;
/// Ports that are closed at once.
const BLOCK: usize = 32;

#[test]
fn of_every_port_protected_and_not() {
    for protocol in Protocol::ALL {
        for first in (0..=u16::MAX).step_by(BLOCK) {
            let ports: Vec<Port> = (first..=u16::MAX).take(BLOCK).filter_map(|n| Port::new(protocol, n)).collect();
            let mut rng = Rng::with_seed(u64::from(first));
            let (protected, others): (Vec<Port>, Vec<Port>) = ports.iter().partition(|_| rng.bool());
            for protected in [protected, others] {
                let config = Config { protected: vec![protected.into_iter().collect()], ..Config::default() };
                check(config, &[], &ports);
            }
        }
    }
}

#[test]
fn of_random_policies_and_sets() {
    thread::scope(|scope| {
        for seed in 0..THREADS {
            scope.spawn(move || {
                let mut rng = Rng::with_seed(seed);
                for _ in 0..DRAWS / THREADS {
                    // Few numbers, so that they meet.
                    let mut some = |most| (0..rng.usize(..=most)).filter_map(|_| port(&mut rng)).collect::<Vec<_>>();
                    let (listening, local, closed) = (some(3), some(3), some(6));
                    let listeners: Vec<Listener> = listening.into_iter().map(|port| listener(port, &mut rng)).collect();
                    let listen = ([0; 4], rng.u16(7440..7446)).into();
                    let swarm_control = if rng.bool() { SwarmControl::Open } else { SwarmControl::Peers };
                    let protected = vec![local.into_iter().collect()];
                    let scanners = rng.bool().then(|| "203.0.113.5/32".parse().unwrap()).into_iter().collect();
                    let config = Config { protected, swarm_control, listen, scanners, ..Config::default() };
                    check(config, &listeners, &closed);
                }
            });
        }
    });
}

/// Closes `ports` in the ledger, renders, and asks the rules about each of them and each that is protected.
fn check(config: Config, listeners: &[Listener], ports: &[Port]) {
    let has_peers = config.swarm_control == SwarmControl::Peers;
    let policy = config.policy(listeners, has_peers, Permitted::All);
    let node = Node::new("n1".parse().unwrap(), config, Box::new(Fake::default()));
    let mut ledger = Ledger::default();
    ledger.armed = true;
    ledger.outside.insert("eth0".to_owned());
    ledger.peers.extend(has_peers.then(|| ("198.51.100.12".parse().unwrap(), Timestamp::UNIX_EPOCH)));
    for &port in ports {
        ledger.close(Closure { port, origin: Origin::Local, since: Timestamp::UNIX_EPOCH });
    }
    ledger.allowed_locally = policy.protected.iter().flat_map(|protection| protection.ports.iter()).take(2).collect();
    let desired = node.desired(&ledger, &policy);
    // Its own file says so, and no order: strangers on the outside do not reach it, whatever else does.
    let own = node.config.own_port().map(|own| Port::tcp(own.number));

    let guard = Guard::desired(&desired).unwrap().render();
    let table = Table::parse(&guard);
    let protected: BTreeSet<Port> = policy.protected.iter().flat_map(|protection| protection.ports.iter()).collect();
    let asked: BTreeSet<Port> = protected.iter().chain(ports).copied().collect();
    let save = docker(&asked);
    let (script, tightened) = iptables::script(&save, Family::V4, &desired).unwrap_or_default();
    let accepted = accepted(&restored(&save, "DOCKER-INGRESS", &script));
    for &port in &asked {
        let is_open = protected.contains(&port);
        let shut: Vec<&str> = WAYS
            .iter()
            .filter(|(chain, tracked)| !table.passes(chain, *tracked, port))
            .map(|(chain, _)| *chain)
            .collect();
        match Some(port) == own {
            true => assert_eq!(shut, ["input"], "{port} is the agent's:\n{guard}"),
            false => assert_eq!(shut.is_empty(), is_open, "{port} is protected by {policy:?}:\n{guard}"),
        }
        assert_eq!(accepted.contains(&port), is_open, "{port} is protected by {policy:?}:\n{script}");
        assert_eq!(!tightened.contains(&port), is_open, "{port} is protected by {policy:?}:\n{script}");
    }
    // The guard of a kernel without nf_tables names no port that it does not shut.
    let (legacy, _) = iptables::script_with_guard(&save, Family::V4, &desired).unwrap_or_default();
    let is_door = |line: &&str| line.starts_with("-A DEADLIGHT-DOOR -i eth0 ");
    let drops = |line: &&str| line.ends_with(" -j DROP") || line.contains(" -j REJECT ");
    let (door, others): (Vec<&str>, Vec<&str>) = legacy.lines().partition(is_door);
    let of_door: BTreeSet<Port> = door.into_iter().filter_map(named).collect();
    let dropped: BTreeMap<Port, &str> =
        others.into_iter().filter(drops).filter_map(|line| Some((named(line)?, line))).collect();
    for &port in &protected {
        assert_eq!(of_door.contains(&port), Some(port) == own, "{legacy}");
        assert_eq!(dropped.get(&port), None, "{port} is protected by {policy:?}");
    }
    // What is allowed may name a protected port: it opens, and nothing in it closes.
    for rule in restored(&save, "DEADLIGHT", &script) {
        assert!(rule.ends_with(" -j ACCEPT"), "{rule}");
    }
}

/// The port that a rule of iptables matches by any of its numbers.
fn named(rule: &str) -> Option<Port> {
    let mut words = rule.split(' ').skip_while(|word| !matches!(*word, "--dport" | "--sport" | "--ctorigdstport"));
    let number = words.nth(1)?.parse().unwrap();
    let protocol = Protocol::ALL.into_iter().find(|protocol| rule.contains(&format!("-p {protocol} "))).unwrap();
    Port::new(protocol, number)
}

/// A node on which Docker publishes all of `ports` by the mesh.
fn docker(ports: &BTreeSet<Port>) -> Save {
    let (mut nat, mut filter) = (String::new(), String::new());
    for Port { protocol, number } in ports {
        let published = format!("-A DOCKER-INGRESS -p {protocol} -m {protocol} --dport {number} -j");
        let _infallible = writeln!(nat, "{published} DNAT --to-destination 172.18.0.2:{number}");
        let _infallible = writeln!(filter, "{published} ACCEPT");
    }
    let text = format!(
        "*nat\n:DOCKER-INGRESS - [0:0]\n{nat}COMMIT\n\
         *filter\n:DOCKER-INGRESS - [0:0]\n:DOCKER-USER - [0:0]\n{filter}COMMIT\n"
    );
    Save::parse(&text).unwrap()
}

fn port(rng: &mut Rng) -> Option<Port> {
    let protocol = if rng.bool() { Protocol::Tcp } else { Protocol::Udp };
    let numbers = [22, 80, 2222, 2377, 4789, 7443, 7946, 8080, u16::MAX, rng.u16(..), rng.u16(7440..7446)];
    Port::new(protocol, numbers[rng.usize(..numbers.len())])
}

/// Of sshd, of process 1, or of anybody.
fn listener(port: Port, rng: &mut Rng) -> Listener {
    let (pid, program) = [(700, "sshd"), (1, "systemd"), (701, "dockerd")][rng.usize(..3)];
    let process = Process { pid, program: program.to_owned(), ..Process::default() };
    Listener { port, address: [0; 4].into(), process: Some(process), is_hidden: false }
}
