//! Docker absent, mute or mad: the port is closed all the same, and only the cause is unknown.

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    fake_docker::FakeDocker,
    lab::{Family::V4, INGRESS, Lab},
    order,
};
use serde_json::json;

use crate::expect;

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
    let _agent = deployment.start_agent(&lab.wire)?;

    let response = order::send(&deployment, &lab.wire, &order::order(1, &[(V4, "tcp", INGRESS)]))?;
    ensure!(response.text.contains("\"enforced\""), "{response:?}");
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}
