//! The riddle of a port that is open although no service publishes it.

use anyhow::{Result, ensure};
use deadlight_tests::{answer::Answer, lab::Family};

use crate::{
    expect::{self, Protocol::Tcp},
    lab::NODES,
    swarm::Swarm,
};

/// Somebody started the same image by hand beside the service.
pub(crate) fn of_a_port_that_no_service_publishes(swarm: &Swarm) -> Result<()> {
    let node = &NODES[2];
    swarm.create_service("container-stats", "--constraint node.hostname==c", "httpd -f -h /www -p 8080")?;
    swarm.place_of("container-stats")?;
    expect::answers(swarm, Tcp, node.at(Family::V4, 8080), Answer::Refused)?;
    swarm.run_container(node, "story-stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    expect::answers(swarm, Tcp, node.at(Family::V4, 8080), Answer::Data)?;
    let cause = swarm.fleet.explain(swarm.lab(), node, "8080/tcp")?;
    ensure!(cause.starts_with("published_container") && cause.contains("container story-stats"), "{cause}");
    ensure!(!cause.contains("service"), "it is no service's: {cause}");
    let said = swarm.fleet.close(swarm.lab())?.stdout;
    ensure!(said.contains("story-stats"), "the loop does not name the container: {said}");
    expect::closed(swarm, node, Tcp, 8080)
}
