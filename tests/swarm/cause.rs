//! The riddle of a port that is open although no service publishes it.

use anyhow::{Result, ensure};
use deadlight_tests::{answer::Answer, lab::Family, wait::wait_for};

use crate::{
    expect::{self, Protocol::Tcp},
    lab::NODES,
    swarm::{PATIENCE, Swarm},
};

/// Somebody started the same image by hand beside the service.
pub(crate) fn of_a_port_that_no_service_publishes(swarm: &Swarm) -> Result<()> {
    let node = &NODES[2];
    swarm.create_service("container-stats", "--constraint node.hostname==c", "httpd -f -h /www -p 8080")?;
    swarm.place_of("container-stats")?;
    expect::answers(swarm, Tcp, node.at(Family::V4, 8080), Answer::Refused)?;
    swarm.run_container(node, "story-stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    expect::answers(swarm, Tcp, node.at(Family::V4, 8080), Answer::Data)?;
    let cause = expect::cause(swarm, node, "8080/tcp", "published_container", "container story-stats")?;
    ensure!(!cause.contains("service"), "it is no service's: {cause}");
    wait_for("the loop to name the container", PATIENCE, || {
        let said = swarm.fleet.close(swarm.lab()).map_err(|error| format!("{error:#}"))?.stdout;
        if said.contains("story-stats") {
            return Ok(());
        }
        // Docker was too slow. It is open again, and nobody has seen it.
        let reopened = swarm.fleet.forget().and_then(|()| swarm.fleet.agent(swarm.lab(), node, "revert 8080/tcp"));
        Err(format!("{said} {reopened:?}"))
    })?;
    expect::closed(swarm, node, Tcp, 8080)
}
