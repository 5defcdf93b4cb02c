//! Ports that one container publishes: another chain, and docker-proxy over IPv6.

use anyhow::Result;
use deadlight_tests::{answer::Answer, lab::Family};

use crate::{
    expect::{
        self,
        Protocol::{Tcp, Udp},
    },
    lab::Node,
    swarm::Swarm,
};

/// `docker run -p`.
pub(crate) fn docker_run(swarm: &Swarm, node: &'static Node) -> Result<()> {
    swarm.run_container(node, "story-web", "--publish 9000:80", "httpd -f -h /www -p 80")?;
    swarm.run_container(node, "story-log", "--publish 5514:514/udp", "socat UDP-LISTEN:514,fork PIPE")?;
    for family in Family::BOTH {
        expect::answers(swarm, Tcp, node.at(family, 9000), Answer::Data)?;
        expect::answers(swarm, Udp, node.at(family, 5514), Answer::Data)?;
    }
    swarm.fleet.close(swarm.lab())?;
    expect::closed(swarm, node, Tcp, 9000)?;
    expect::closed(swarm, node, Udp, 5514)?;
    expect::cause(swarm, node, "9000/tcp", "published_container", "container story-web").map(drop)
}

/// A service whose tasks publish on their own nodes.
pub(crate) fn mode_host(swarm: &Swarm, node: &'static Node) -> Result<()> {
    let options =
        format!("--publish mode=host,published=9002,target=80 --constraint node.hostname=={name}", name = node.name);
    swarm.create_service("local", &options, "httpd -f -h /www -p 80")?;
    for family in Family::BOTH {
        expect::answers(swarm, Tcp, node.at(family, 9002), Answer::Data)?;
    }
    swarm.fleet.close(swarm.lab())?;
    expect::closed(swarm, node, Tcp, 9002)?;
    expect::cause(swarm, node, "9002/tcp", "published_container", "service local").map(drop)
}
