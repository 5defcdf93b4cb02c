//! Who may not command an agent, and what is not an order: in no case does a rule change.

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    answer::Answer,
    deployment::{AGENT_PORT, Deployment, NODE, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    hostile::{Response, request},
    lab::{
        Family::{V4, V6},
        INGRESS, Lab,
    },
    order::{self, PATH, order},
    test_ca::{Identity, TestCa, Validity},
};
use serde_json::{Value, json};

use crate::expect;

const SCANNER: &str = "spiffe://deadlight/scanner/office-a";

#[test]
fn an_agents_certificate_commands_nobody() -> Result<()> {
    nothing_changes(|lab, deployment| {
        let agent = deployment.identity(&format!("spiffe://deadlight/agent/{NODE}"), Validity::Current)?;
        let response = put(lab, Some(agent), &closing_8080())?;
        ensure!(response.status == 403, "{response:?}");
        Ok(())
    })
}

#[test]
fn no_certificate_fails_the_handshake() -> Result<()> {
    nothing_changes(|lab, _| refused_handshake(lab, None))
}

#[test]
fn a_foreign_cas_certificate_fails_the_handshake() -> Result<()> {
    nothing_changes(|lab, _| refused_handshake(lab, Some(TestCa::foreign()?.issue(SCANNER, Validity::Current)?)))
}

#[test]
fn an_expired_certificate_fails_the_handshake() -> Result<()> {
    nothing_changes(|lab, deployment| refused_handshake(lab, Some(deployment.identity(SCANNER, Validity::Expired)?)))
}

#[test]
fn a_scanner_cannot_order_in_anothers_name() -> Result<()> {
    nothing_changes(|lab, deployment| {
        let other = deployment.identity("spiffe://deadlight/scanner/office-b", Validity::Current)?;
        let response = put(lab, Some(other), &closing_8080())?;
        ensure!(response.status == 403, "{response:?}");
        Ok(())
    })
}

#[test]
fn an_order_for_another_node_is_refused() -> Result<()> {
    bad_order(403, |order| order["node"] = json!("n2"))
}

#[test]
fn an_expired_order_is_refused() -> Result<()> {
    bad_order(409, |order| order["expires_at"] = json!("2001-01-01T00:00:00Z"))
}

#[test]
fn an_unknown_field_is_refused_by_name() -> Result<()> {
    let response = bad_order_answer(|order| order["mode"] = json!("enforce"))?;
    ensure!(response.status == 422 && response.text.contains("mode"), "{response:?}");
    ensure!(response.text.contains("application/problem+json"), "{response:?}");
    Ok(())
}

#[test]
fn port_0_is_refused() -> Result<()> {
    bad_order(422, |order| order["findings"][0]["port"] = json!(0))
}

#[test]
fn an_oversized_order_is_refused() -> Result<()> {
    bad_order(413, |order| order["scan"] = json!("x".repeat(300 * 1024)))
}

#[test]
fn an_older_order_gets_the_stored_report_and_does_nothing() -> Result<()> {
    let (lab, deployment) = open_world()?;
    let _agent = deployment.start_agent(&lab.wire)?;
    order::enforce(&deployment, &lab.wire, 5, &[(V4, "tcp", INGRESS)])?;
    let rules = (lab.saved_rules()?, lab.native_tables()?);

    let response = order::send(&deployment, &lab.wire, &order(4, &[]))?;
    ensure!(response.text.contains("\"sequence\":5") && response.text.contains("enforced"), "{response:?}");
    ensure!((lab.saved_rules()?, lab.native_tables()?) == rules, "an older order changed rules");
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}

fn bad_order(status: u16, spoil: impl FnOnce(&mut Value)) -> Result<()> {
    let response = bad_order_answer(spoil)?;
    ensure!(response.status == status, "not {status}: {response:?}");
    Ok(())
}

fn bad_order_answer(spoil: impl FnOnce(&mut Value)) -> Result<Response> {
    let mut answer = None;
    nothing_changes(|lab, deployment| {
        let mut order = closing_8080();
        spoil(&mut order);
        answer = Some(order::send(deployment, &lab.wire, &order)?);
        Ok(())
    })?;
    answer.context("no answer")
}

/// Runs an attack, checks that it left no trace, and then that the same order from the scanner itself works.
fn nothing_changes(attack: impl FnOnce(&Lab, &Deployment) -> Result<()>) -> Result<()> {
    let (lab, deployment) = open_world()?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let before = (lab.saved_rules()?, lab.native_tables()?);
    attack(&lab, &deployment)?;
    ensure!((lab.saved_rules()?, lab.native_tables()?) == before, "rules changed");
    expect::tcp(lab.inet(), V4.node(INGRESS), Answer::Data)?;

    order::enforce(&deployment, &lab.wire, 1, &[(V4, "tcp", INGRESS)])?;
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}

fn open_world() -> Result<(Lab, Deployment)> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    Ok((lab, Deployment::new(&Settings::default())?))
}

fn closing_8080() -> Value {
    order(1, &[(V4, "tcp", INGRESS), (V6, "tcp", INGRESS)])
}

fn put(lab: &Lab, identity: Option<Identity>, order: &Value) -> Result<Response> {
    request(lab.inet(), V4.node(AGENT_PORT), identity, "PUT", PATH, &order.to_string())
}

fn refused_handshake(lab: &Lab, identity: Option<Identity>) -> Result<()> {
    match put(lab, identity, &closing_8080()) {
        Ok(response) => anyhow::bail!("the agent answered: {response:?}"),
        Err(error) => {
            let chain = format!("{error:#}");
            ensure!(chain.contains("alert"), "not a TLS alert: {chain}");
            Ok(())
        }
    }
}
