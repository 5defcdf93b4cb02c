//! Ports that one container publishes: another chain, and a process of the node over IPv6.

use anyhow::Result;
use deadlight_tests::{answer::Answer, lab::Family};

use crate::{
    expect::{self, Protocol::Tcp},
    lab::Node,
    swarm::Swarm,
};

/// `docker run -p`.
pub(crate) fn docker_run(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.run_container(node, "story-web", "--publish 9000:80", "httpd -f -h /www -p 80")?;
    for family in Family::BOTH {
        expect::answers(swarm, Tcp, node.at(family, 9000), Answer::Data)?;
    }
    swarm.fleet.close(swarm.lab())?;
    expect::closed(swarm, node, Tcp, 9000)
}
