//! Posture `allowlist`: closed before anybody has reported it.

use anyhow::{Result, ensure};
use deadlight_tests::{answer::Answer, lab::Family, wait::wait_for};

use crate::{
    expect::{self, Protocol::Tcp},
    lab::NODES,
    swarm::{PATIENCE, Swarm},
};

/// Whatever Docker publishes from now on, but what the file allows; no scanner has a part in it.
pub(crate) fn closes_what_nobody_reported(swarm: &Swarm) -> Result<()> {
    swarm.fleet.configure("posture = \"allowlist\"\nallow = [\"80/tcp\"]\n")?;
    swarm.fleet.start_agents(swarm.lab())?;
    let node = &NODES[2];
    swarm.create_service("stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    swarm.create_service("site", "--publish 80:80", "httpd -f -h /www -p 80")?;
    swarm.run_container(node, "story-web", "--publish 9000:80", "httpd -f -h /www -p 80")?;
    swarm.run_process(node, "tcp", "socat TCP6-LISTEN:9011,fork,reuseaddr PIPE")?;
    expect::ingress_open(swarm, Tcp, 80)?;
    wait_for("what is published to be closed", PATIENCE, || {
        expect::closed_everywhere(swarm, Tcp, 8080)
            .and_then(|()| expect::closed(swarm, node, Tcp, 9000))
            .map_err(|error| format!("{error:#}"))
    })?;
    swarm.update_service("stats", "--force")?;
    expect::closed_everywhere(swarm, Tcp, 8080)?;
    // Nobody published it, and nobody reported it.
    expect::answers(swarm, Tcp, node.at(Family::V4, 9011), Answer::Data)?;
    let said = swarm.fleet.agent(swarm.lab(), node, "explain 80/tcp")?.expect_code(0)?.stdout;
    ensure!(said.contains("allowlist: allowed on this node"), "{said}");
    Ok(())
}
