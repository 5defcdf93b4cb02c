//! Docker absent, mute or mad: the port is closed all the same, and only the cause is unknown.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::fs;

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    fake_docker::FakeDocker,
    lab::{Family::V4, INGRESS, Lab},
    order,
    programs::Running,
};
use serde_json::json;

use crate::expect;

/// Some answers of the greatest length at once, each twice in memory, and the agent itself.
const MAX_KIB: u64 = 256 << 10;

#[test]
fn absent() -> Result<()> {
    closes_all_the_same(|_| Ok(()))
}

#[test]
fn hung() -> Result<()> {
    closes_all_the_same(FakeDocker::hung)
}

#[test]
fn garbage() -> Result<()> {
    closes_all_the_same(FakeDocker::garbage)
}

/// As much as it can send, in one answer and as events.
#[test]
fn endless() -> Result<()> {
    closes_all_the_same(|socket| FakeDocker::endless(socket, &[b' '; 1 << 16]))
}

/// A byte at a time.
#[test]
fn dribbling() -> Result<()> {
    closes_all_the_same(|socket| FakeDocker::endless(socket, b" "))
}

#[test]
fn without_any_object() -> Result<()> {
    closes_all_the_same(|socket| {
        let nothing = ["/networks", "/services", "/containers/json"].map(|path| (path, json!([])));
        FakeDocker::serving(socket, nothing.into())
    })
}

fn closes_all_the_same<T>(docker: impl FnOnce(&std::path::Path) -> Result<T>) -> Result<()> {
    let directory = deadlight_tests::scratch::directory()?;
    let socket = directory.path().join("docker.sock");
    let _docker = docker(&socket)?;
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let deployment = Deployment::new(&Settings { docker_socket: &socket, ..Settings::default() })?;
    let agent = deployment.start_agent(&lab.wire)?;

    let response = order::send(&deployment, &lab.wire, &order::order(1, &[(V4, "tcp", INGRESS)]))?;
    ensure!(response.text.contains("\"enforced\""), "{response:?}");
    expect::closed(&lab.wire, &[(V4, INGRESS)])?;
    let peak = peak_memory(&agent)?;
    println!("the agent took {} MiB at most", peak >> 10);
    ensure!(peak < MAX_KIB, "{} MiB", peak >> 10);
    Ok(())
}

fn peak_memory(agent: &Running) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
