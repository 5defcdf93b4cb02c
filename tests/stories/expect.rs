//! What stories say about ports.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer, tcp_answer_from},
    lab::{Family, Lab, Wire},
    netns::Netns,
};

/// Demands an answer of a TCP port, asked from `namespace`.
pub(crate) fn tcp(namespace: &Netns, to: SocketAddr, expected: Answer) -> Result<()> {
    let answer = tcp_answer(namespace, to)?;
    ensure!(answer == expected, "{to}/tcp: {answer:?}, not {expected:?}");
    Ok(())
}

/// Demands that neither the scanner nor a stranger gets any answer from a port of the node.
pub(crate) fn closed(wire: &Wire, family: Family, port: u16) -> Result<()> {
    let to = family.node(port);
    for from in [family.scanner(), family.stranger()] {
        let answer = tcp_answer_from(&wire.inet, (from, 0).into(), to)?;
        ensure!(answer == Answer::Silent, "{to}/tcp from {from}: {answer:?}, not closed");
    }
    Ok(())
}

/// How the allowlisted ingress port of a replayed engine answers: over IPv6 there is only dockerd's mute listener.
pub(crate) fn allowed_answers(lab: &Lab, family: Family) -> Result<()> {
    let expected = match family {
        Family::V4 => Answer::Data,
        Family::V6 => Answer::OpenNoData,
    };
    tcp(lab.inet(), family.node(deadlight_tests::lab::ALLOWED), expected)
}

/// Demands that a container reaches the ingress port at its gateway.
pub(crate) fn reachable_inside(lab: &Lab) -> Result<()> {
    tcp(&lab.task, ([172, 18, 0, 1], deadlight_tests::lab::INGRESS).into(), Answer::Data)
}
