//! Whether a closed port answers once while a real dockerd restarts, publishes again, and the agent restarts, time and
//! again.

use anyhow::Result;
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy},
    dockerd::Dockerd,
    lab::{Family, INGRESS, Wire},
    order,
    programs::Running,
    syn_watch::Tried,
};

use crate::{probe::Probe, repetitions};

const SERVICE: &str = "stats";
/// In each family, after each event.
const SYNS: u64 = 20;

pub(crate) fn measure() -> Result<()> {
    let rounds = repetitions(100)?;
    let wire = Wire::new()?;
    let mut dockerd = Dockerd::start(&wire, Backend::Nft, ForwardPolicy::Drop)?;
    dockerd.create_service(SERVICE, INGRESS)?;
    let socket = dockerd.socket();
    let deployment = Deployment::new(&Settings { docker_socket: &socket, ..Settings::default() })?;
    let mut agent = Some(deployment.start_agent(&wire)?);
    let probe = Probe::start(&wire, INGRESS)?;

    println!("| an ingress port of a real dockerd, 100 SYNs a second in each family | SYNs sent | answered |");
    println!("|---|---|---|");
    row("not closed yet", probe.see_open()?);
    order::enforce(&deployment, &wire, 1, &Family::BOTH.map(|family| (family, "tcp", INGRESS)))?;
    endure(&probe, "restarts of dockerd", rounds, || dockerd.restart())?;
    endure(&probe, "times `docker service update --force`", rounds, || dockerd.update_force(SERVICE))?;
    endure(&probe, "restarts of the agent", rounds, || {
        agent.take().map(Running::stop).transpose()?;
        agent = Some(deployment.start_agent(&wire)?);
        Ok(())
    })?;
    deployment.agent(&wire, &["revert", "--all"])?.expect_code(0)?;
    row("opened again", probe.see_open()?);
    Ok(())
}

fn endure(probe: &Probe, what: &str, rounds: usize, mut event: impl FnMut() -> Result<()>) -> Result<()> {
    let mark = probe.so_far();
    for _ in 0..rounds {
        event()?;
        probe.observe(SYNS)?;
    }
    row(&format!("closed, {rounds} {what}"), probe.since(mark));
    Ok(())
}

fn row(what: &str, tried: Tried) {
    println!("| {what} | {} | {} |", tried.sent, tried.answered);
}
