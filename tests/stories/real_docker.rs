//! A real dockerd on the node.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::time::Duration;

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::Answer,
    closed_engine::ClosedEngine,
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy, ingress_accepts,
    },
    dockerd::Dockerd,
    expect,
    lab::{Family, INGRESS, RUN, Wire},
    process::run,
    wait::wait_for,
};

#[test]
fn the_engine_is_true_nft() -> Result<()> {
    the_engine_is_true(Nft)
}

#[test]
fn the_engine_is_true_legacy() -> Result<()> {
    the_engine_is_true(Legacy)
}

/// Without any product: it publishes, and puts its wide ACCEPT back where somebody narrowed it.
fn the_engine_is_true(backend: Backend) -> Result<()> {
    let wire = Wire::new()?;
    let mut dockerd = Dockerd::start(&wire, backend, ForwardPolicy::Drop)?;
    dockerd.create_service("stats", INGRESS)?;
    dockerd.run_published("web", RUN)?;
    for (family, port, expected) in [
        (Family::V4, INGRESS, Answer::Data),
        (Family::V6, INGRESS, Answer::OpenNoData),
        (Family::V4, RUN, Answer::Data),
        (Family::V6, RUN, Answer::Data),
    ] {
        expect::answers(&wire, family, port, expected)?;
    }

    let wide = "-A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j ACCEPT";
    let narrow = "-A DOCKER-INGRESS -s 172.18.0.0/16 -p tcp -m tcp --dport 8080 -j ACCEPT";
    let before = ingress_accepts(&wire.node, backend, INGRESS)?;
    ensure!(before == [wide], "{before:#?}");
    let mut replace = wire.node.command(backend.tool("iptables", ""));
    replace.args(["--wait", "-R", "DOCKER-INGRESS", "1"]).args(narrow.split(' ').skip(2));
    run(&mut replace)?;
    expect::answers(&wire, Family::V4, INGRESS, Answer::Silent)?;

    dockerd.update_force("stats")?;
    wait_for("the wide ACCEPT to be back", Duration::from_secs(10), || {
        match ingress_accepts(&wire.node, backend, INGRESS) {
            Ok(rules) if rules == [wide, narrow] => Ok(()),
            other => Err(format!("{other:#?}")),
        }
    })?;
    expect::answers(&wire, Family::V4, INGRESS, Answer::Data)?;

    dockerd.restart()?;
    expect::answers(&wire, Family::V4, INGRESS, Answer::Data)?;
    dockerd.remove_service("stats")?;
    expect::answers(&wire, Family::V4, INGRESS, Answer::Refused)
}

#[test]
fn the_loop_closes_and_stays_closed_nft_ipv4() -> Result<()> {
    the_loop_closes_and_stays_closed(Nft, Family::V4)
}

#[test]
fn the_loop_closes_and_stays_closed_nft_ipv6() -> Result<()> {
    the_loop_closes_and_stays_closed(Nft, Family::V6)
}

#[test]
fn the_loop_closes_and_stays_closed_legacy_ipv4() -> Result<()> {
    the_loop_closes_and_stays_closed(Legacy, Family::V4)
}

#[test]
fn the_loop_closes_and_stays_closed_legacy_ipv6() -> Result<()> {
    the_loop_closes_and_stays_closed(Legacy, Family::V6)
}

fn the_loop_closes_and_stays_closed(backend: Backend, family: Family) -> Result<()> {
    let wire = Wire::new()?;
    let mut closed = ClosedEngine::new(&wire, backend, &[family])?;
    closed.dockerd.update_force("stats")?;
    closed.stays_closed()?;
    closed.dockerd.restart()?;
    println!("{backend}: tightened within {:.2?} of dockerd's restart", closed.stays_closed()?);
    Ok(())
}
