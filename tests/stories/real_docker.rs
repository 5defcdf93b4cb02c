//! A real dockerd on the node.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy, ingress_accepts,
    },
    dockerd::Dockerd,
    lab::{ALLOWED, Family, INGRESS, RUN, Wire},
    process::run,
    syn_watch::SynWatch,
    wait::wait_for,
};

use crate::expect;

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
    let mut dockerd = Dockerd::start(&wire, backend, ForwardPolicy::Accept)?;
    dockerd.create_service("stats", INGRESS)?;
    dockerd.create_service("site", ALLOWED)?;
    dockerd.run_published("web", RUN)?;
    let operators = "DOCKER-USER -s 203.0.113.99/32 -j DROP";
    run(wire.node.command(backend.tool("iptables", "")).args(["--wait", "-I"]).args(operators.split(' ')))?;
    let behind_the_mesh = if family == Family::V4 { Answer::Data } else { Answer::OpenNoData };
    for (port, expected) in [(INGRESS, behind_the_mesh), (ALLOWED, behind_the_mesh), (RUN, Answer::Data)] {
        answers(&wire, family, port, expected)?;
    }

    let socket = dockerd.socket();
    let settings = Settings {
        families: &[family],
        // The swarm's own ports are protected, and not what this story is about.
        allow: "80,2377,7443,7946/tcp",
        docker_socket: &socket,
        ..Settings::default()
    };
    let deployment = Deployment::new(&settings)?;
    let agent = deployment.start_agent(&wire)?;
    let ended = deployment.scanner(&wire, &["run", "--once"])?;
    let said = format!("{}\n{}\nagent:\n{}", ended.stdout, ended.stderr, agent.log());
    ensure!(ended.code()? == 0, "exit status {}: {said}", ended.code()?);
    if family == Family::V4 {
        ensure!(ended.stdout.contains("stats"), "the cause does not name the service: {said}");
    }
    expect::closed(&wire, &[(family, RUN)])?;

    let open = SynWatch::start(&wire.inet, family.scanner(), family.node(ALLOWED))?.observe(50)?;
    ensure!(open.answered > 40, "the watch must see an open port: {open:?}");
    let watch = SynWatch::start(&wire.inet, family.scanner(), family.node(INGRESS))?;
    dockerd.update_force("stats")?;
    watch.observe(100)?;
    dockerd.restart()?;
    let restarted = Instant::now();
    watch.observe(100)?;
    wait_for("the ACCEPT to be narrow again", Duration::from_secs(15), || expect::narrow(&wire.node, backend))?;
    println!("{backend}: tightened {:.2?} after dockerd's restart", restarted.elapsed());
    let rules = run(&mut wire.node.command(backend.tool("iptables", "-save")))?;
    ensure!(rules.lines().any(|rule| rule == format!("-A {operators}")), "the operator's rule is gone:\n{rules}");
    let tried = watch.so_far();
    ensure!(tried.answered == 0, "{tried:?} through update and restart");
    expect::closed(&wire, &[(family, RUN)])?;
    answers(&wire, family, ALLOWED, behind_the_mesh)
}

/// Docker tells nobody when a port is ready.
fn answers(wire: &Wire, family: Family, port: u16, expected: Answer) -> Result<()> {
    let to = family.node(port);
    wait_for(&format!("{to}"), Duration::from_secs(10), || match tcp_answer(&wire.inet, to) {
        Ok(answer) if answer == expected => Ok(()),
        other => Err(format!("{other:?}, not {expected:?}")),
    })
}
