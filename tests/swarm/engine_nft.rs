//! Newer engines on iptables-nft, which the nodes' own kernel lacks: in namespaces of this machine, without the lab.

use std::time::Duration;

use anyhow::{Result, ensure};
use deadlight_tests::{
    closed_engine::{ClosedEngine, publishing},
    deployment::{Deployment, Settings},
    docker_rules::{self, Backend::Nft},
    engine::Engine,
    expect,
    lab::{Family, INGRESS, Wire, native_tables},
    wait::wait_for,
};

/// A chain that engines before 28 do not have.
const NEW_LAYOUT: &str = ":DOCKER-FORWARD ";

/// Through `service update --force` and a restart of dockerd, over both families.
pub(crate) fn stays_closed(engine: Engine) -> Result<()> {
    let wire = engine.node(Nft)?;
    let mut closed = ClosedEngine::new(&wire, Nft, &Family::BOTH)?;
    engine.must_be(&closed.dockerd)?;
    closed.dockerd.update_force("stats")?;
    closed.stays_closed()?;
    closed.dockerd.restart()?;
    let took = closed.stays_closed()?;
    eprint!("tightened within {took:.2?} of the restart, ");
    Ok(())
}

/// Counters aside, both families byte for byte.
pub(crate) fn revert_leaves_no_trace(engine: Engine) -> Result<()> {
    let wire = engine.node(Nft)?;
    let dockerd = publishing(&wire, Nft)?;
    engine.must_be(&dockerd)?;
    let before = rules(&wire)?;
    let deployment = Deployment::node_only(&Settings { docker_socket: &dockerd.socket(), ..Settings::default() })?;
    deployment.agent(&wire, &["harden", "--allow", "80/tcp", "--once"])?.expect_code(0)?;
    expect::closed(&wire, &Family::BOTH.map(|family| (family, INGRESS)))?;
    ensure!(rules(&wire)? != before, "nothing of ours is there to be reverted");
    deployment.agent(&wire, &["revert", "--all"])?.expect_code(0)?;
    let after = rules(&wire)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(native_tables(&wire.node)?.is_empty(), "left: {:?}", native_tables(&wire.node)?);
    Family::BOTH
        .into_iter()
        .try_for_each(|family| expect::answers(&wire, family, INGRESS, expect::behind_the_mesh(family)))
}

/// From 26.1 to 28.5, with all data, while the agent runs.
pub(crate) fn is_upgraded() -> Result<()> {
    let (old, new) = (Engine::V26_1, Engine::V28_5);
    let wire = old.node(Nft)?;
    let mut closed = ClosedEngine::new(&wire, Nft, &Family::BOTH)?;
    old.must_be(&closed.dockerd)?;
    ensure!(!rules(&wire)?.contains(NEW_LAYOUT) && jumps(&wire)? == 1, "not those of {old}:\n{}", rules(&wire)?);

    closed.dockerd.stop()?;
    new.install(&wire)?;
    closed.dockerd.start_again()?;
    new.must_be(&closed.dockerd)?;
    let took = closed.stays_closed()?;
    eprint!("tightened within {took:.2?} of the upgrade, ");
    ensure!(rules(&wire)?.contains(NEW_LAYOUT), "not those of {new}:\n{}", rules(&wire)?);
    wait_for("our rules in both families", Duration::from_secs(15), || match jumps(&wire) {
        Ok(2) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// How many families have our rules among Docker's: only newer engines filter IPv6.
fn jumps(wire: &Wire) -> Result<usize> {
    Ok(rules(wire)?
        .lines()
        .filter(|rule| rule.starts_with("-A DOCKER-USER ") && rule.ends_with(" -j DEADLIGHT"))
        .count())
}

fn rules(wire: &Wire) -> Result<String> {
    docker_rules::save(&wire.node, Nft)
}
