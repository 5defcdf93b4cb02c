//! What listens on the node itself: INPUT, not FORWARD.

use anyhow::{Result, ensure};
use deadlight_tests::{answer::Answer, lab::Family};

use crate::{
    expect::{
        self,
        Protocol::{Tcp, Udp},
    },
    lab::{NODES, Node},
    swarm::Swarm,
};

/// `docker run --network host`.
pub(crate) fn container_on_the_host_network(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.run_container(node, "story-host", "--network host", "socat TCP6-LISTEN:9010,fork,reuseaddr PIPE")?;
    closes(swarm, node, 9010)?;
    let cause = swarm.fleet.explain(swarm.lab(), node, "9010/tcp")?;
    ensure!(cause.starts_with("host_process") && cause.contains("container story-host"), "{cause}");
    Ok(())
}

/// No container at all.
pub(crate) fn plain_process(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.run_process(node, "tcp", "socat TCP6-LISTEN:9011,fork,reuseaddr PIPE")?;
    swarm.run_process(node, "udp", "socat UDP6-LISTEN:5514,fork,reuseaddr PIPE")?;
    expect::answers(swarm, Udp, node.at(Family::V4, 5514), Answer::Data)?;
    closes(swarm, node, 9011)?;
    expect::closed(swarm, node, Udp, 5514)?;
    let cause = swarm.fleet.explain(swarm.lab(), node, "9011/tcp")?;
    ensure!(cause.starts_with("host_process") && cause.contains("program socat"), "{cause}");
    Ok(())
}

/// They stay open, because a swarm cannot do without; but nobody may overlook them.
pub(crate) fn control_ports_are_reported(swarm: &Swarm) -> Result<()> {
    for node in &NODES {
        let cause = swarm.fleet.explain(swarm.lab(), node, "7946/tcp")?;
        ensure!(cause.starts_with("swarm_control"), "{cause}");
    }
    let cause = swarm.fleet.explain(swarm.lab(), &NODES[0], "2377/tcp")?;
    ensure!(cause.starts_with("swarm_control"), "{cause}");
    let seen = swarm.fleet.scan(swarm.lab(), "2377,7946")?;
    let control = NODES.iter().map(|node| (node, 7946)).chain([(&NODES[0], 2377)]);
    let expected = control.flat_map(|(node, port)| Family::BOTH.map(|family| node.at(family, port))).collect();
    ensure!(seen == expected, "{seen:?}, not {expected:?}");
    Ok(())
}

fn closes(swarm: &Swarm, node: &'static Node, port: u16) -> Result<()> {
    for family in Family::BOTH {
        expect::answers(swarm, Tcp, node.at(family, port), Answer::Data)?;
    }
    swarm.fleet.close(swarm.lab())?;
    expect::closed(swarm, node, Tcp, port)
}
