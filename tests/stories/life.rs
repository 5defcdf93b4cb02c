//! The life of certificates: renewed, expired, revoked, and under another CA, with orders going on.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    deployment::{AGENT_PORT, Deployment, NODE, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    hostile::request,
    lab::{Family::V4, INGRESS, Lab},
    order,
    programs::{self, Running},
    test_ca::{Identity, Validity},
};
use serde_json::{Value, json};

use crate::expect;

#[test]
fn a_certificate_is_renewed_at_half_life_without_a_restart() -> Result<()> {
    let (lab, deployment, agent) = enrolled()?;
    let before = identity(&deployment)?;
    loop_closes(&lab, &deployment)?;
    ensure!(identity(&deployment)?["pair"] == before["pair"], "renewed before it was due");

    age(&deployment, "2001-01-01T00:00:00Z")?;
    loop_closes(&lab, &deployment)?;
    let renewed = identity(&deployment)?;
    ensure!(renewed["pair"]["key"] != before["pair"]["key"], "the key is the old one");
    ensure!(agent.log().matches("agent started").count() == 1, "{}", agent.log());
    agent.stop()?;
    let _agent = deployment.start_agent(&lab.wire)?;
    loop_closes(&lab, &deployment)
}

#[test]
fn a_renewal_that_an_agent_could_not_keep_is_made_again() -> Result<()> {
    let (lab, deployment, agent) = enrolled()?;
    let before = identity(&deployment)?;
    agent.stop()?;
    let read_only = "mount --bind \"$STATE\" \"$STATE\"; mount -o remount,ro,bind \"$STATE\"";
    let mut command = programs::agent_apart(&lab.wire.node, read_only)?;
    command.env("STATE", deployment.path("state"));
    let agent = deployment.start_agent_by(command, &lab.wire)?;
    age(&deployment, "2001-01-01T00:00:00Z")?;
    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?;
    ensure!(ended.stderr.contains("failed to renew its certificate"), "{ended:?}");
    agent.stop()?;
    ensure!(identity(&deployment)? == before, "kept on a disk that takes nothing");

    let _agent = deployment.start_agent(&lab.wire)?;
    loop_closes(&lab, &deployment)?;
    ensure!(identity(&deployment)?["pair"]["key"] != before["pair"]["key"], "not renewed");
    Ok(())
}

#[test]
fn an_expired_certificate_is_renewed_for_thirty_days_and_good_for_nothing_else() -> Result<()> {
    let (lab, deployment, agent) = enrolled()?;
    agent.stop()?;
    expire(&deployment, &days_ago(20))?;
    let _agent = deployment.start_agent(&lab.wire)?;
    loop_closes(&lab, &deployment)
}

#[test]
fn after_thirty_days_a_node_has_to_be_enrolled_anew_and_its_closures_stand() -> Result<()> {
    let (lab, deployment, agent) = enrolled()?;
    loop_closes(&lab, &deployment)?;
    agent.stop()?;
    expire(&deployment, &days_ago(31))?;
    let agent = deployment.start_agent(&lab.wire)?;
    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?;
    ensure!(ended.stdout.contains("expired") || ended.stderr.contains("xpired"), "{ended:?}");
    expect::closed(&lab.wire, &[(V4, INGRESS)])?;
    agent.stop()?;

    let (scanner, line) = deployment.invite(&lab.wire, &[])?;
    deployment.agent(&lab.wire, &["enroll", "--again", &line])?.expect_code(0)?;
    scanner.wait(Duration::from_secs(15))?;
    let _agent = deployment.start_agent(&lab.wire)?;
    loop_closes(&lab, &deployment)
}

#[test]
fn a_revoked_scanner_is_refused_as_soon_as_another_has_called() -> Result<()> {
    let (lab, deployment, _agent) = enrolled()?;
    deployment.pki(&["issue-scanner", "office-b"])?.expect_code(0)?;
    let file = |kind: &str| deployment.path(&format!("pki/scanner-office-b.{kind}"));
    let ask = || {
        let other = Identity::load(&file("crt"), &file("key"))?;
        request(&lab.wire.inet, V4.node(AGENT_PORT), Some(other), "GET", "/v1/status", "")
    };
    ensure!(ask()?.status == 200, "it is good until it is revoked");

    deployment.pki(&["revoke", "--scanner", "office-b"])?.expect_code(0)?;
    loop_closes(&lab, &deployment)?;
    let refused = ask().err().context("the revoked scanner was answered")?;
    ensure!(format!("{refused:#}").contains("alert"), "not a TLS alert: {refused:#}");
    let missing = deployment.pki(&["revoke", "--scanner", "office-c"])?.expect_code(2)?;
    ensure!(missing.stderr.contains("hint: deadlight-scanner pki list"), "{missing:?}");
    Ok(())
}

#[test]
fn a_revoked_node_is_not_spoken_to() -> Result<()> {
    let (lab, deployment, _agent) = enrolled()?;
    deployment.pki(&["revoke", NODE])?.expect_code(0)?;
    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?;
    ensure!(ended.code()? == 1 && format!("{ended:?}").to_lowercase().contains("revoked"), "{ended:?}");
    Ok(())
}

#[test]
fn the_ca_changes_under_orders_and_cuts_nobody_off() -> Result<()> {
    let (lab, deployment, agent) = enrolled()?;
    let step = |words: &[&str]| deployment.pki(&[&["rotate-ca"], words].concat());
    for _ in 0..2 {
        ensure!(step(&[])?.expect_code(0)?.stdout.starts_with("step 1"), "not prepared");
        let untold = step(&[])?.expect_code(2)?;
        ensure!(untold.stderr.contains("would be cut off: agent n1\nhint: "), "{untold:?}");
        loop_closes(&lab, &deployment)?;
        ensure!(step(&[])?.expect_code(0)?.stdout.starts_with("step 2"), "not switched");
        let unrenewed = step(&[])?.expect_code(2)?;
        ensure!(unrenewed.stderr.contains("agent n1, scanner office-a\nhint: "), "{unrenewed:?}");
        loop_closes(&lab, &deployment)?;
        ensure!(step(&[])?.expect_code(0)?.stdout.starts_with("step 3"), "not finished");
        loop_closes(&lab, &deployment)?;
    }
    ensure!(identity(&deployment)?["trust"]["authorities"].as_array().map(Vec::len) == Some(1), "one CA");
    ensure!(agent.log().matches("agent started").count() == 1, "{}", agent.log());
    agent.stop()?;
    let _agent = deployment.start_agent(&lab.wire)?;
    loop_closes(&lab, &deployment)
}

#[test]
fn a_trust_document_of_nobody_is_refused_with_the_order_that_carried_it() -> Result<()> {
    let (lab, deployment, _agent) = enrolled()?;
    let before = identity(&deployment)?;
    let scanner = deployment.identity("spiffe://deadlight/scanner/office-a", Validity::Current)?;
    let path = format!("{} HTTP/1.1\r\ndeadlight-trust: e30.e30\r\nx:", order::PATH);
    let response =
        request(&lab.wire.inet, V4.node(AGENT_PORT), Some(scanner), "PUT", &path, &order::order(1, &[]).to_string())?;
    ensure!(response.status == 403 && response.text.contains("not signed by a CA"), "{response:?}");
    ensure!(identity(&deployment)? == before, "the identity has changed");
    Ok(())
}

fn enrolled() -> Result<(Lab, Deployment, Running)> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let deployment = Deployment::unenrolled(&Settings { sweep: "8000-8100", ..Settings::default() })?;
    deployment.enroll(&lab.wire)?;
    let agent = deployment.start_agent(&lab.wire)?;
    Ok((lab, deployment, agent))
}

pub(crate) fn loop_closes(lab: &Lab, deployment: &Deployment) -> Result<()> {
    deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}

pub(crate) fn identity(deployment: &Deployment) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(deployment.path("state/identity.json"))?)?)
}

/// Lets the CA believe that the node's certificate began at `from`.
pub(crate) fn age(deployment: &Deployment, from: &str) -> Result<()> {
    change_registry(deployment, |certificate| certificate["from"] = json!(from))
}

fn change_registry(deployment: &Deployment, change: impl Fn(&mut Value)) -> Result<()> {
    let path = deployment.path("pki/registry.json");
    let mut registry: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let certificates = registry["certificates"].as_array_mut().context("no certificates")?;
    certificates
        .iter_mut()
        .filter(|it| it["identity"].as_str().is_some_and(|it| it.contains("/agent/")))
        .for_each(change);
    Ok(fs::write(&path, registry.to_string())?)
}

/// Gives the node, in place of its certificate, one for the same key that ended at `end`.
pub(crate) fn expire(deployment: &Deployment, end: &str) -> Result<()> {
    change_registry(deployment, |certificate| certificate["to"] = json!(end))?;
    let mut document = identity(deployment)?;
    let key = document["pair"]["key"].as_str().context("no key")?.to_owned();
    let certificate = deployment.ca()?.certify(&key, &format!("spiffe://deadlight/agent/{NODE}"), end)?;
    document["pair"]["certificate"] = json!(certificate);
    Ok(fs::write(deployment.path("state/identity.json"), document.to_string())?)
}

pub(crate) fn days_ago(days: i64) -> String {
    (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days)).to_string()
}
