//! What listens on the node itself: INPUT, not FORWARD.

use anyhow::{Result, ensure};
use deadlight_tests::{answer::Answer, lab::Family, wait::wait_for};

use crate::{
    expect::{
        self,
        Protocol::{Tcp, Udp},
    },
    lab::{NODES, Node},
    swarm::{PATIENCE, Swarm},
};

/// `docker run --network host`.
pub(crate) fn container_on_the_host_network(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.run_container(node, "story-host", "--network host", "socat TCP6-LISTEN:9010,fork,reuseaddr PIPE")?;
    closes(swarm, node, 9010)?;
    expect::cause(swarm, node, "9010/tcp", "host_process", "container story-host").map(drop)
}

/// No container at all.
pub(crate) fn plain_process(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.run_process(node, "tcp", "socat TCP6-LISTEN:9011,fork,reuseaddr PIPE")?;
    swarm.run_process(node, "udp", "socat UDP6-LISTEN:5514,fork,reuseaddr PIPE")?;
    expect::answers(swarm, Udp, node.at(Family::V4, 5514), Answer::Data)?;
    closes(swarm, node, 9011)?;
    expect::closed(swarm, node, Udp, 5514)?;
    expect::cause(swarm, node, "9011/tcp", "host_process", "program socat").map(drop)
}

/// They stay open, because a swarm cannot do without; but nobody may overlook them.
pub(crate) fn control_ports_are_reported(swarm: &Swarm) -> Result<()> {
    for node in &NODES {
        expect::cause(swarm, node, "7946/tcp", "swarm_control", "")?;
    }
    expect::cause(swarm, &NODES[0], "2377/tcp", "swarm_control", "")?;
    let seen = swarm.fleet.scan(swarm.lab(), "2377,7946")?;
    let control = NODES.iter().map(|node| (node, 7946)).chain([(&NODES[0], 2377)]);
    let expected = control.flat_map(|(node, port)| Family::BOTH.map(|family| node.at(family, port))).collect();
    ensure!(seen == expected, "{seen:?}, not {expected:?}");
    Ok(())
}

/// With `swarm_control = "peers"` they are closed to strangers, and the swarm goes on.
pub(crate) fn control_ports_are_for_the_swarm_alone(swarm: &Swarm) -> Result<()> {
    let ports = "2377,7946";
    ensure!(!swarm.fleet.scan(swarm.lab(), ports)?.is_empty(), "they are closed already");
    swarm.fleet.configure("swarm_control = \"peers\"\n")?;
    swarm.fleet.start_agents(swarm.lab())?;
    wait_for("the control ports to be closed", PATIENCE, || match swarm.fleet.scan(swarm.lab(), ports) {
        Ok(open) if open.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    // Managers hear of workers, gossip tells them of the service, and VXLAN leads from each of them to its task.
    swarm.create_service("site", "--publish 80:80 --constraint node.hostname==b", "httpd -f -h /www -p 80")?;
    expect::ingress_open(swarm, Tcp, 80)?;
    wait_for("all nodes to be ready", PATIENCE, || {
        let status = swarm.manage("docker node ls --format '{{.Status}}'").map_err(|error| format!("{error:#}"))?;
        if status.lines().eq(NODES.iter().map(|_| "Ready")) { Ok(()) } else { Err(status) }
    })?;
    expect::cause(swarm, &NODES[1], "7946/tcp", "swarm_control", "").map(drop)
}

/// Whoever reaches it has root on the node.
pub(crate) fn an_open_docker_api(swarm: &Swarm) -> Result<()> {
    let node = &NODES[0];
    swarm.restart_engine_with(node, "-H unix:///var/run/docker.sock -H tcp://[::]:2375")?;
    let closed = closes(swarm, node, 2375).and_then(|()| expect::cause(swarm, node, "2375/tcp", "docker_api", ""));
    swarm.restart_engine(node)?;
    closed.map(drop)
}

fn closes(swarm: &Swarm, node: &'static Node, port: u16) -> Result<()> {
    for family in Family::BOTH {
        expect::answers(swarm, Tcp, node.at(family, port), Answer::Data)?;
    }
    swarm.fleet.close(swarm.lab())?;
    expect::closed(swarm, node, Tcp, port)
}
