//! What the agent closes by its own configuration, before anybody has reported it; beside a real dockerd.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy,
    },
    dockerd::Dockerd,
    lab::{ALLOWED, Family, INGRESS, RUN, Wire},
    syn_watch::SynWatch,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(10);
const POSTURE: &str = "posture = \"allowlist\"\nallow = [\"80/tcp\"]\nswarm_control = \"peers\"\n";

#[test]
fn what_docker_publishes_is_closed_nft() -> Result<()> {
    what_docker_publishes_is_closed(Nft)
}

#[test]
fn what_docker_publishes_is_closed_legacy() -> Result<()> {
    what_docker_publishes_is_closed(Legacy)
}

fn what_docker_publishes_is_closed(backend: Backend) -> Result<()> {
    let wire = Wire::new()?;
    let mut dockerd = Dockerd::start(&wire, backend, ForwardPolicy::Accept)?;
    let socket = dockerd.socket();
    let deployment = Deployment::new(&Settings { docker_socket: &socket, ..Settings::default() })?;
    deployment.prepend(POSTURE)?;
    let agent = deployment.start_agent(&wire)?;
    let watches = Family::BOTH.map(|family| SynWatch::start(&wire.inet, family.scanner(), family.node(RUN)));
    dockerd.run_published("web", RUN)?;
    let published = Instant::now();
    dockerd.create_service("stats", INGRESS)?;
    dockerd.create_service("site", ALLOWED)?;

    // The swarm's own ports as well: there are no other nodes.
    for port in [RUN, INGRESS, 2377, 7946] {
        for family in Family::BOTH {
            let to = family.node(port);
            wait_for(&format!("{to} to be closed"), SOON, || match tcp_answer(&wire.inet, to) {
                Ok(Answer::Silent) => Ok(()),
                other => Err(format!("{other:?}\n{}", agent.log())),
            })?;
        }
    }
    for (family, watch) in Family::BOTH.into_iter().zip(watches) {
        let watch = watch?;
        let until_now = watch.so_far();
        watch.observe(50)?;
        let since = watch.since(until_now);
        ensure!(since.answered == 0, "{since:?}");
        println!(
            "{backend} {family:?}: {} SYNs answered, {:.2?} after docker run",
            until_now.answered,
            published.elapsed()
        );
    }
    ensure!(tcp_answer(&wire.inet, Family::V4.node(ALLOWED))? == Answer::Data, "what is allowed must stay open");
    Ok(())
}
