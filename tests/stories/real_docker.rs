//! A real dockerd on the node.

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy, ingress_accepts,
    },
    dockerd::Dockerd,
    lab::{Family, INGRESS, RUN, Wire},
    process::run,
    wait::wait_for,
};
use std::time::Duration;

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
        answers(&wire, family, port, expected)?;
    }

    let wide = "-A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j ACCEPT";
    let narrow = "-A DOCKER-INGRESS -s 172.18.0.0/16 -p tcp -m tcp --dport 8080 -j ACCEPT";
    let before = ingress_accepts(&wire.node, backend, INGRESS)?;
    ensure!(before == [wide], "{before:#?}");
    let mut replace = wire.node.command(backend.tool("iptables", ""));
    replace.args(["--wait", "-R", "DOCKER-INGRESS", "1"]).args(narrow.split(' ').skip(2));
    run(&mut replace)?;
    answers(&wire, Family::V4, INGRESS, Answer::Silent)?;

    dockerd.update_force("stats")?;
    wait_for("the wide ACCEPT to be back", Duration::from_secs(10), || {
        match ingress_accepts(&wire.node, backend, INGRESS) {
            Ok(rules) if rules == [wide, narrow] => Ok(()),
            other => Err(format!("{other:#?}")),
        }
    })?;
    answers(&wire, Family::V4, INGRESS, Answer::Data)?;

    dockerd.restart()?;
    answers(&wire, Family::V4, INGRESS, Answer::Data)?;
    dockerd.remove_service("stats")?;
    answers(&wire, Family::V4, INGRESS, Answer::Refused)
}

/// Docker tells nobody when a port is ready.
fn answers(wire: &Wire, family: Family, port: u16, expected: Answer) -> Result<()> {
    let to = family.node(port);
    wait_for(&format!("{to}"), Duration::from_secs(10), || match tcp_answer(&wire.inet, to) {
        Ok(answer) if answer == expected => Ok(()),
        other => Err(format!("{other:?}, not {expected:?}")),
    })
}
