//! A node that boots is shut before it is reachable.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Result, ensure};
use deadlight_tests::{answer::Answer, lab::Family, syn_watch::SynWatch};

use crate::{
    expect::{self, Protocol::Tcp},
    lab::NODES,
    swarm::Swarm,
};

/// A boot with everything around it takes a minute on two cores.
const BOOTS: u32 = 5;
/// What systemd does before network-pre.target.
const RESTORE: &str = "#!/bin/sh\nexec /lab/deadlight-agent restore --config \"/lab/$lab_node.toml\"\n";

/// Power cuts, with a prober outside all the time.
pub(crate) fn a_closed_port_answers_no_syn(swarm: &Swarm) -> Result<()> {
    let node = &NODES[2];
    for (name, port) in [("story-web", 9000), ("story-site", 80)] {
        let publish = format!("--restart always --publish {port}:80");
        swarm.run_container(node, name, &publish, "httpd -f -h /www -p 80")?;
        expect::answers(swarm, Tcp, node.at(Family::V4, port), Answer::Data)?;
    }
    swarm.fleet.close(swarm.lab())?;
    let script = swarm.lab().before_network(node);
    fs::write(&script, RESTORE)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let watch = |family: Family, port| SynWatch::start(swarm.inet(), family.scanner(), node.at(family, port));
    let closed = [watch(Family::V4, 9000)?, watch(Family::V6, 9000)?];
    for boot in 1..=BOOTS {
        swarm.lab().reboot(node)?;
        let site = watch(Family::V4, 80)?;
        expect::answers(swarm, Tcp, node.at(Family::V4, 80), Answer::Data)?;
        site.see_open()?;
        for watch in &closed {
            let tried = watch.observe(100)?;
            ensure!(watch.so_far().answered == 0, "boot {boot}: {:?}, {tried:?} at the end", watch.so_far());
        }
    }
    Ok(())
}
