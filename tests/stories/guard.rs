//! The guard stands whatever happens around it: routes, tracking, another tool's hands, a killed agent.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer, tcp_answer_from},
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::{
        Family::{V4, V6},
        HOST, INGRESS, Lab, RUN, plug,
    },
    order::enforce,
    process::{run, run_with_input},
    programs::{self, finish},
    wait::wait_for,
};

use crate::expect;

/// Longer than two rounds of the agent.
const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_port_that_becomes_protected_opens_and_blocks_nothing_else() -> Result<()> {
    let (lab, deployment) = world()?;
    let harden = ["harden", "--allow=80/tcp", "--once"];
    deployment.agent(&lab.wire, &harden)?.expect_code(0)?;
    expect::closed(&lab.wire, &[(V4, INGRESS), (V4, RUN)])?;
    deployment.prepend("protected = [\"8080/tcp\"]")?;
    let ended = deployment.agent(&lab.wire, &harden)?.expect_code(0)?;
    ensure!(ended.stdout.contains("left open: 8080/tcp is protected"), "{ended:?}");
    ensure!(!ended.stdout.contains("to the outside: 8080/tcp"), "{ended:?}");
    expect::tcp(lab.inet(), V4.node(INGRESS), Answer::Data)?;
    expect::closed(&lab.wire, &[(V4, RUN)])
}

#[test]
fn a_network_that_comes_late_finds_the_ports_closed() -> Result<()> {
    let (lab, deployment) = world()?;
    let agent = deployment.start_agent(&lab.wire)?;
    enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", HOST)])?;
    agent.kill()?;
    run(lab.node().command("nft").args(["delete", "table", "inet", "deadlight"]))?;
    lab.node().ip("route del default")?;
    lab.node().ip("-6 route del default")?;
    let _agent = deployment.start_agent(&lab.wire)?;
    expect::closed(&lab.wire, &[(V4, HOST), (V6, HOST)])
}

#[test]
fn every_next_hop_of_the_default_route_is_outside() -> Result<()> {
    let (lab, deployment) = world()?;
    plug(lab.node(), "eth1", lab.inet(), "eth1")?;
    lab.node().ip("addr add 203.0.113.11/24 dev eth1")?;
    lab.inet().ip("addr add 203.0.113.1/24 dev eth1")?;
    lab.node().ip("route replace default nexthop via 198.51.100.1 nexthop via 203.0.113.1")?;
    deployment.agent(&lab.wire, &["harden", "--allow=80/tcp", "--once"])?.expect_code(0)?;
    for address in ["198.51.100.11", "203.0.113.11"] {
        expect::tcp(lab.inet(), format!("{address}:{INGRESS}").parse()?, Answer::Silent)?;
    }
    Ok(())
}

#[test]
fn a_port_exempt_from_tracking_is_closed_too() -> Result<()> {
    let (lab, deployment) = world()?;
    for tool in ["iptables-nft", "ip6tables-nft"] {
        let rule = format!("-t raw -I PREROUTING -p tcp --dport {HOST} -j CT --notrack");
        run(lab.node().command(tool).args(rule.split(' ')))?;
    }
    expect::tcp(lab.inet(), V4.node(HOST), Answer::Data)?;
    let _agent = deployment.start_agent(&lab.wire)?;
    enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", HOST), (V6, "tcp", HOST)])?;
    expect::closed(&lab.wire, &[(V4, HOST), (V6, HOST)])
}

#[test]
fn a_trusted_source_passes_guard_and_tightening() -> Result<()> {
    let (lab, deployment) = world()?;
    deployment.prepend("trusted = [\"198.51.100.2/32\", \"2001:db8:51::2/128\"]")?;
    deployment.agent(&lab.wire, &["harden", "--allow=80/tcp", "--once"])?.expect_code(0)?;
    for (family, expected) in [(V4, Answer::Data), (V6, Answer::OpenNoData)] {
        for (source, expected) in [(family.stranger(), expected), (family.scanner(), Answer::Silent)] {
            let answer = tcp_answer_from(lab.inet(), (source, 0).into(), family.node(INGRESS))?;
            ensure!(answer == expected, "{source} gets {answer:?}, not {expected:?}");
        }
    }
    Ok(())
}

#[test]
fn a_killed_agent_and_a_flush_leave_it_to_the_next_start() -> Result<()> {
    let (lab, deployment) = world()?;
    let agent = deployment.start_agent(&lab.wire)?;
    enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", HOST)])?;
    agent.kill()?;
    expect::closed(&lab.wire, &[(V4, HOST), (V6, HOST)])?;
    run(lab.node().command("nft").args(["flush", "ruleset"]))?;
    expect::tcp(lab.inet(), V4.node(HOST), Answer::Data)?;
    let _agent = deployment.start_agent(&lab.wire)?;
    expect::closed(&lab.wire, &[(V4, HOST), (V6, HOST)])
}

#[test]
fn what_others_do_to_the_table_is_repaired() -> Result<()> {
    let (lab, deployment) = world()?;
    let agent = deployment.start_agent(&lab.wire)?;
    enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", HOST)])?;
    for damage in [
        "flush ruleset\n",
        "delete table inet deadlight\n",
        "delete element inet deadlight closed_tcp { 9100 }\n",
        "flush chain inet deadlight prerouting\n",
        "insert rule inet deadlight prerouting accept\n",
        "add map inet deadlight foreign { type ipv4_addr : verdict; }\nflush chain inet deadlight prerouting\n",
    ] {
        run_with_input(lab.node().command("nft").args(["-f", "-"]), damage)?;
        wait_for(&format!("repair of {damage:?}"), SOON, || match tcp_answer(lab.inet(), V4.node(HOST)) {
            Ok(Answer::Silent) => Ok(()),
            other => Err(format!("{other:?}\n{}", agent.log())),
        })?;
    }
    Ok(())
}

#[test]
fn a_full_disk_keeps_nobody_from_closing_or_opening() -> Result<()> {
    let (lab, deployment) = world()?;
    let state = deployment.path("state");
    fs::create_dir_all(&state)?;
    for (words, expected) in
        [(["harden", "--allow=80/tcp", "--once"].as_slice(), Answer::Silent), (&["revert", "--all"], Answer::Data)]
    {
        let mut command = programs::agent_apart(lab.node(), programs::FULL)?;
        command.args(words).arg("--config").arg(deployment.path("agent.toml")).env("STATE", &state);
        let ended = finish(&mut command)?.expect_code(1)?;
        ensure!(ended.stderr.contains("state not persisted"), "{ended:?}");
        expect::tcp(lab.inet(), V4.node(INGRESS), expected)?;
    }
    Ok(())
}

fn world() -> Result<(Lab, Deployment)> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    Ok((lab, Deployment::new(&Settings::default())?))
}
