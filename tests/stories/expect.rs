//! What stories say about ports.

use std::{
    net::{IpAddr, SocketAddr},
    panic, thread,
};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer, tcp_answer_from},
    docker_rules::{Backend, ingress_accepts},
    lab::{ALLOWED, Family, INGRESS, Lab, Wire},
    netns::Netns,
};

/// Demands an answer of a TCP port, asked from `namespace`.
pub(crate) fn tcp(namespace: &Netns, to: SocketAddr, expected: Answer) -> Result<()> {
    let answer = tcp_answer(namespace, to)?;
    ensure!(answer == expected, "{to}/tcp: {answer:?}, not {expected:?}");
    Ok(())
}

/// Demands that neither the scanner nor a stranger gets any answer from TCP ports of the node.
pub(crate) fn closed(wire: &Wire, ports: &[(Family, u16)]) -> Result<()> {
    let ask = |(family, port): (Family, u16), from: IpAddr| -> Result<()> {
        let to = family.node(port);
        let answer = tcp_answer_from(&wire.inet, (from, 0).into(), to)?;
        ensure!(answer == Answer::Silent, "{to}/tcp from {from}: {answer:?}, not closed");
        Ok(())
    };
    // Side by side, because silence takes its time.
    thread::scope(|scope| {
        let asked: Vec<_> = ports
            .iter()
            .flat_map(|&(family, port)| [family.scanner(), family.stranger()].map(|from| ((family, port), from)))
            .map(|(port, from)| scope.spawn(move || ask(port, from)))
            .collect();
        asked.into_iter().try_for_each(|asked| asked.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

/// How the allowlisted ingress port of a replayed engine answers: over IPv6 there is only dockerd's mute listener.
pub(crate) fn allowed_answers(lab: &Lab, family: Family) -> Result<()> {
    let expected = match family {
        Family::V4 => Answer::Data,
        Family::V6 => Answer::OpenNoData,
    };
    tcp(lab.inet(), family.node(ALLOWED), expected)
}

/// Whether Docker's ACCEPT of the ingress port is there and lets only containers in; if not, the rules.
pub(crate) fn narrow(node: &Netns, backend: Backend) -> Result<(), String> {
    let rules = ingress_accepts(node, backend, INGRESS).map_err(|error| format!("{error:#}"))?;
    let narrow = !rules.is_empty() && rules.iter().all(|rule| rule.contains(" -s 172."));
    if narrow { Ok(()) } else { Err(format!("{rules:#?}")) }
}

/// Demands that a container reaches the ingress port at its gateway.
pub(crate) fn reachable_inside(lab: &Lab) -> Result<()> {
    tcp(&lab.task, ([172, 18, 0, 1], INGRESS).into(), Answer::Data)
}
