//! A node whose clock is wrong does what it is told, and the scanner says so.

use std::process::Command;

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::{Family::V4, INGRESS, Lab},
    programs::{Running, built},
};

use crate::expect;

#[test]
fn a_day_ahead() -> Result<()> {
    the_loop_closes("+24h", "24h ahead of ours")
}

#[test]
fn a_day_behind() -> Result<()> {
    the_loop_closes("-24h", "24h behind ours")
}

#[test]
fn booted_in_1970() -> Result<()> {
    the_loop_closes("@1970-01-01 00:10:00", "behind ours")
}

#[test]
fn a_clock_that_jumps_opens_nothing() -> Result<()> {
    let (lab, deployment) = world()?;
    for clock in ["+0", "-24h", "+24h", "@1970-01-01 00:10:00", "+0"] {
        let _agent = start(&lab, &deployment, clock)?;
        deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
        expect::closed(&lab.wire, &[(V4, INGRESS)])?;
    }
    Ok(())
}

fn the_loop_closes(clock: &str, said: &str) -> Result<()> {
    let (lab, deployment) = world()?;
    let agent = start(&lab, &deployment, clock)?;
    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?;
    ensure!(ended.code()? == 0 && ended.stderr.contains(said), "{ended:?}\n{}", agent.log());
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}

/// The agent with its wall clock moved; what it measures with the other clock stays true.
fn start(lab: &Lab, deployment: &Deployment, clock: &str) -> Result<Running> {
    let mut command: Command = lab.wire.node.command("faketime");
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").args(["-f", clock]).arg(built("deadlight-agent")?);
    deployment.start_agent_by(command, &lab.wire)
}

fn world() -> Result<(Lab, Deployment)> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    Ok((lab, Deployment::new(&Settings { sweep: "8000-8100", ..Settings::default() })?))
}
