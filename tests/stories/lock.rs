//! The xtables lock is held while an order arrives: the guard needs no lock and stands at once, the answer says what
//! is missing, and when the lock is free the rest follows by itself.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::{
    panic,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::Answer,
    deployment::{Deployment, Settings},
    docker_rules::{Backend::Legacy, ForwardPolicy, Layout},
    lab::{
        Family::{V4, V6},
        INGRESS, Lab, RUN,
    },
    netns::Netns,
    order::{order, send},
    process::run,
    programs::{self, Running, built},
    wait::wait_for,
};

use crate::expect;

const LOCK: &str = "/run/xtables.lock";
/// For how long the agent waits for the lock before it answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon after the release an order that was left pending is carried out; a look that nobody called comes later.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn held_for_1_s_is_waited_for() -> Result<()> {
    held_for(Duration::from_secs(1))
}

#[test]
fn held_for_9_s_is_pending_and_closed_all_the_same() -> Result<()> {
    held_for(Duration::from_secs(9))
}

/// As in a container: the kernel announces its programs by numbers that the agent does not know.
#[test]
fn held_for_7_s_while_the_agent_counts_processes_anew() -> Result<()> {
    held_for_beside(Duration::from_secs(7), |node| {
        let mut command = node.command("unshare");
        command.args(["--pid", "--fork", "--kill-child"]).arg(built("deadlight-agent")?);
        Ok(command)
    })
}

#[test]
fn held_for_60_s_is_pending_and_closed_all_the_same() -> Result<()> {
    held_for(Duration::from_secs(60))
}

fn held_for(duration: Duration) -> Result<()> {
    held_for_beside(duration, programs::agent)
}

fn held_for_beside(duration: Duration, agent: impl Fn(&Netns) -> Result<Command>) -> Result<()> {
    let mut lab = Lab::new(Layout::V28, Legacy, ForwardPolicy::Accept)?;
    lab.wire.node.furnish(Legacy)?;
    let deployment = Deployment::new(&Settings::default())?;
    // The kernel is done with addresses and routes, whose changes have the agent look too.
    wait_for("a quiet network", PATIENCE, || {
        match run(lab.node().command("ip").args(["address", "show", "tentative"])) {
            Ok(none) if none.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    let agent = deployment.start_agent_by(agent(&lab.wire.node)?, &lab.wire)?;
    expect::tcp(lab.inet(), V4.node(INGRESS), Answer::Data)?;
    expect::tcp(lab.inet(), V6.node(RUN), Answer::Data)?;

    let holder = hold(&lab, &deployment, duration)?;
    let held = Instant::now();
    let body = order(1, &[(V4, "tcp", INGRESS), (V6, "tcp", RUN)]);
    let (guarded, response) = thread::scope(|scope| {
        let answer = scope.spawn(|| send(&deployment, &lab.wire, &body));
        let guarded = wait_for("the guard", PATIENCE / 2, || {
            let set = ["list", "set", "inet", "deadlight", "closed_tcp"];
            let set = run(lab.node().command("nft").args(set)).map_err(|error| error.to_string())?;
            let shut = [INGRESS, RUN].iter().all(|port| set.contains(&format!("{port} counter")));
            if shut { Ok(held.elapsed()) } else { Err(set) }
        });
        (guarded, answer.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    });
    let (guarded, response) = (guarded?, response?);
    let answered = held.elapsed();
    if duration < PATIENCE {
        ensure!(response.text.matches("\"enforced\"").count() == 2, "{response:?}\n{}", agent.log());
    } else {
        ensure!(answered < duration, "the answer came after {answered:?}, the lock was held for {duration:?}");
        ensure!(response.text.matches("\"pending\"").count() == 2, "{response:?}\n{}", agent.log());
        ensure!(response.text.contains("another program holds the xtables lock"), "{response:?}");
        ensure!(expect::narrow(lab.node(), Legacy).is_err(), "rules were written without the lock");
    }
    expect::closed(&lab.wire, &[(V4, INGRESS), (V6, RUN)])?;

    holder.wait(duration + PATIENCE)?;
    wait_for("the ACCEPT to be narrow", (duration + SOON).saturating_sub(held.elapsed()), || {
        expect::narrow(lab.node(), Legacy).map_err(|rules| format!("{rules}\n{}", agent.log()))
    })?;
    println!(
        "lock held for {duration:?}: guarded after {guarded:.2?}, answered after {answered:.2?}, \
         tightened {:.2?} after the release",
        held.elapsed().saturating_sub(duration)
    );
    if duration > PATIENCE {
        gone_on_with(&agent, duration)?;
    }
    expect::closed(&lab.wire, &[(V4, INGRESS), (V6, RUN)])?;
    expect::allowed_answers(&lab, V4)
}

/// What was pending is not told as something that was lost, and looks that failed had their pauses.
fn gone_on_with(agent: &Running, held_for: Duration) -> Result<()> {
    let log = wait_for("the agent to say so", SOON, || match agent.log() {
        log if log.contains("a pending order goes on") => Ok(log),
        log => Err(log),
    })?;
    ensure!(!log.contains("drift repaired"), "{log}");
    let failed = log.lines().filter(|line| line.contains("ERROR") && line.contains("xtables lock")).count();
    ensure!(failed as u64 <= held_for.as_secs() / PATIENCE.as_secs(), "{failed} looks failed: {log}");
    Ok(())
}

/// Holds the lock that the agent's programs take; returns when it is held.
fn hold(lab: &Lab, deployment: &Deployment, duration: Duration) -> Result<Running> {
    let script = format!("touch /run/held; exec sleep {}", duration.as_secs());
    let mut holder = lab.node().command("flock");
    holder.args([LOCK, "sh", "-c", &script]);
    let mut holder = Running::start(&mut holder, "holder", &deployment.path(""))?;
    let is_held = || run(lab.node().command("test").args(["-e", "/run/held"])).is_ok();
    holder.wait_ready(Duration::from_secs(5), is_held)?;
    Ok(holder)
}
