//! After `revert --all` the tables are as if Deadlight had never run.

use anyhow::{Result, ensure};
use deadlight_tests::{answer::Answer, lab::Family};

use crate::{
    expect::{self, Protocol::Tcp},
    lab::Node,
    swarm::Swarm,
};

/// Counters aside, both families byte for byte.
pub(crate) fn leaves_no_trace(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.create_service("stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    swarm.run_container(node, "story-web", "--publish 9000:80", "httpd -f -h /www -p 80")?;
    expect::ingress_open(swarm, Tcp, 8080)?;
    expect::answers(swarm, Tcp, node.at(Family::V4, 9000), Answer::Data)?;
    let before = rules(swarm, node)?;
    swarm.fleet.close(swarm.lab())?;
    expect::closed(swarm, node, Tcp, 8080)?;
    expect::closed(swarm, node, Tcp, 9000)?;
    ensure!(rules(swarm, node)? != before, "nothing of ours is there to be reverted");
    swarm.fleet.stop_agent(swarm.lab(), node)?;
    swarm.fleet.agent(swarm.lab(), node, "revert --all")?.expect_code(0)?;
    let after = rules(swarm, node)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    expect::answers(swarm, Tcp, node.at(Family::V4, 8080), Answer::Data)
}

/// A table that nothing ever used is not listed, and empty ones differ in nothing.
fn rules(swarm: &Swarm, node: &Node) -> Result<String> {
    let save =
        "for save in iptables-save ip6tables-save; do echo \"# $save\"; $save | sed '/^#/d; s/\\[[0-9:]*\\]$//'; done";
    swarm.on(node, save)
}
