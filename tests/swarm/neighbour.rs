//! A machine on the node's own network, which can send what no router would pass on.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    lab::{Family, plug},
    netns::Netns,
    wait::wait_for,
};

use crate::{
    expect::{self, Protocol::Tcp},
    lab::Node,
    swarm::{PATIENCE, Swarm},
};

/// A route to Docker's own networks through the node: engines before 28 let it in wherever a port is published.
pub(crate) fn reaches_no_container(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.run_container(node, "story-web", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    let address = "docker inspect --format '{{.NetworkSettings.Networks.bridge.IPAddress}}' story-web";
    let container: Ipv4Addr = swarm.on(node, address)?.trim().parse()?;
    let neighbour = beside(swarm, node, container)?;
    let to = (container, 8080).into();
    expect_open(&neighbour, node, to)?;
    swarm.fleet.close(swarm.lab())?;
    closed(&neighbour, to)
}

/// `-p 127.0.0.1:9003:80` is for the node alone; engines before 28 take it from the network as well.
pub(crate) fn reaches_no_loopback_publish(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.run_container(node, "story-web", "--publish 127.0.0.1:9003:80", "httpd -f -h /www -p 80")?;
    // Elsewhere the same number is open, so that a scanner reports it.
    swarm.run_process(
        node,
        "tcp",
        &format!("socat TCP4-LISTEN:9003,bind={},fork PIPE", node.at(Family::V4, 0).ip()),
    )?;
    expect::answers(swarm, Tcp, node.at(Family::V4, 9003), Answer::Data)?;
    let neighbour = beside(swarm, node, Ipv4Addr::LOCALHOST)?;
    // The loopback is a neighbour's like any other address.
    neighbour.ip("rule add pref 10 to 127.0.0.1 lookup 100")?;
    neighbour.ip("rule add pref 20 lookup local")?;
    neighbour.ip("rule del pref 0")?;
    for interface in ["all", "eth0"] {
        neighbour.sysctl(&format!("net/ipv4/conf/{interface}/route_localnet"), "1")?;
        neighbour.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    let to = (Ipv4Addr::LOCALHOST, 9003).into();
    expect_open(&neighbour, node, to)?;
    swarm.fleet.close(swarm.lab())?;
    closed(&neighbour, to)
}

/// A namespace on the same wire, with a route to `target` through the node.
fn beside(swarm: &Swarm, node: &Node, target: Ipv4Addr) -> Result<Netns> {
    let neighbour = Netns::new("neighbour")?;
    plug(&neighbour, "eth0", swarm.inet(), "neighbour")?;
    swarm.inet().ip("link set neighbour master bridge0")?;
    neighbour.ip("addr add 198.51.100.99/24 dev eth0")?;
    let gateway = node.at(Family::V4, 0).ip();
    let table = if target.is_loopback() { "table 100" } else { "" };
    neighbour.ip(&format!("route add {target} via {gateway} dev eth0 src 198.51.100.99 {table}"))?;
    Ok(neighbour)
}

/// Docker 28 refuses by itself; the others must be seen open, or the story would prove nothing.
fn expect_open(neighbour: &Netns, node: &Node, to: SocketAddr) -> Result<()> {
    if node.engine == "28.5" {
        return closed(neighbour, to);
    }
    wait_for(&format!("{to} through node {}", node.name), PATIENCE, || match tcp_answer(neighbour, to) {
        Ok(Answer::Data) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

fn closed(neighbour: &Netns, to: SocketAddr) -> Result<()> {
    let answer = tcp_answer(neighbour, to)?;
    ensure!(answer == Answer::Silent, "{to}: {answer:?}, not closed");
    Ok(())
}
