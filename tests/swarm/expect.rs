//! What stories say about ports, as a stranger sees them.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer, udp_answer},
    lab::Family,
    wait::wait_for,
};

use crate::{
    lab::{Node, on_each},
    swarm::{PATIENCE, Swarm},
};

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// Waits for an answer: Docker tells nobody when a port is ready.
pub(crate) fn answers(swarm: &Swarm, protocol: Protocol, to: SocketAddr, expected: Answer) -> Result<()> {
    wait_for(&format!("{to}, {protocol:?}"), PATIENCE, || match ask(swarm, protocol, to) {
        Ok(answer) if answer == expected => Ok(()),
        other => Err(format!("{other:?}, not {expected:?}")),
    })
}

/// An ingress port of the whole mesh: data over IPv4; over IPv6 dockerd's placeholder, which takes connections and
/// is silent.
pub(crate) fn ingress_open(swarm: &Swarm, protocol: Protocol, port: u16) -> Result<()> {
    let over_ipv6 = if protocol == Protocol::Tcp { Answer::OpenNoData } else { Answer::Silent };
    on_each(|node| {
        answers(swarm, protocol, node.at(Family::V4, port), Answer::Data)?;
        answers(swarm, protocol, node.at(Family::V6, port), over_ipv6)
    })
    .map(drop)
}

/// Closed on every node, over both families.
pub(crate) fn closed_everywhere(swarm: &Swarm, protocol: Protocol, port: u16) -> Result<()> {
    on_each(|node| closed(swarm, node, protocol, port)).map(drop)
}

/// Closed by the guard: TCP is silent; UDP is rejected, which is a proof where silence would be none.
pub(crate) fn closed(swarm: &Swarm, node: &Node, protocol: Protocol, port: u16) -> Result<()> {
    for family in Family::BOTH {
        let to = node.at(family, port);
        match protocol {
            Protocol::Tcp => {
                let answer = ask(swarm, protocol, to)?;
                ensure!(answer == Answer::Silent, "{to}/tcp: {answer:?}, not closed");
            }
            // A node sends one port-unreachable a second to anybody.
            Protocol::Udp => answers(swarm, protocol, to, Answer::Refused)?,
        }
    }
    Ok(())
}

/// Why the agent says that a port is open: a kind, and names. Docker on an emulated node may be too slow for the agent's
/// patience, and then the kind comes alone, or a simpler one.
pub(crate) fn cause(swarm: &Swarm, node: &Node, port: &str, kind: &str, names: &str) -> Result<String> {
    wait_for(&format!("the cause of {port}"), PATIENCE, || match swarm.fleet.explain(swarm.lab(), node, port) {
        Ok(cause) if cause.starts_with(kind) && cause.contains(names) => Ok(cause),
        other => Err(format!("{other:?}, not {kind} with {names}")),
    })
}

fn ask(swarm: &Swarm, protocol: Protocol, to: SocketAddr) -> Result<Answer> {
    match protocol {
        Protocol::Tcp => tcp_answer(swarm.inet(), to),
        Protocol::Udp => udp_answer(swarm.inet(), to),
    }
}
