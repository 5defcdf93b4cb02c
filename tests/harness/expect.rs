//! What stories say about ports.

use std::{
    net::{IpAddr, SocketAddr},
    panic, thread,
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{
    answer::{Answer, tcp_answer, tcp_answer_from},
    docker_rules::{Backend, ingress_accepts},
    lab::{ALLOWED, Family, INGRESS, Lab, Wire},
    netns::Netns,
    wait::wait_for,
};

/// Demands an answer of a TCP port, asked from `namespace`.
pub fn tcp(namespace: &Netns, to: SocketAddr, expected: Answer) -> Result<()> {
    let answer = tcp_answer(namespace, to)?;
    ensure!(answer == expected, "{to}/tcp: {answer:?}, not {expected:?}");
    Ok(())
}

/// Waits until a TCP port of the node answers so: Docker tells nobody when a port is ready.
pub fn answers(wire: &Wire, family: Family, port: u16, expected: Answer) -> Result<()> {
    let to = family.node(port);
    wait_for(&format!("{to}"), Duration::from_secs(10), || match tcp_answer(&wire.inet, to) {
        Ok(answer) if answer == expected => Ok(()),
        other => Err(format!("{other:?}, not {expected:?}")),
    })
}

/// How an open ingress port answers: over IPv6 there is only dockerd's mute listener.
pub fn behind_the_mesh(family: Family) -> Answer {
    match family {
        Family::V4 => Answer::Data,
        Family::V6 => Answer::OpenNoData,
    }
}

/// Demands that neither the scanner nor a stranger gets any answer from TCP ports of the node.
pub fn closed(wire: &Wire, ports: &[(Family, u16)]) -> Result<()> {
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

/// Demands that the allowlisted ingress port of a replayed engine answers.
pub fn allowed_answers(lab: &Lab, family: Family) -> Result<()> {
    tcp(lab.inet(), family.node(ALLOWED), behind_the_mesh(family))
}

/// Whether Docker's ACCEPT of the ingress port is there and lets only containers in; if not, the rules.
pub fn narrow(node: &Netns, backend: Backend) -> Result<(), String> {
    let rules = ingress_accepts(node, backend, INGRESS).map_err(|error| format!("{error:#}"))?;
    let narrow = !rules.is_empty() && rules.iter().all(|rule| rule.contains(" -s 172."));
    if narrow { Ok(()) } else { Err(format!("{rules:#?}")) }
}

/// Demands that a container reaches the ingress port at its gateway.
pub fn reachable_inside(lab: &Lab) -> Result<()> {
    tcp(&lab.task, ([172, 18, 0, 1], INGRESS).into(), Answer::Data)
}
