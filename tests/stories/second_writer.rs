//! While the agent changes rules, another program that does the same loses none of its own.

use std::time::Duration;

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy, Layout,
    },
    lab::{Family::V4, INGRESS, Lab},
    order::{order, send},
    second_writer::{SecondWriter, missing},
    wait::wait_for,
};
use serde_json::json;

use crate::expect;

const ROUNDS: usize = 10;
const ORDERS: u64 = 40;

#[test]
fn loses_no_rule_v20_10_nft() -> Result<()> {
    loses_no_rule(Layout::V20_10, Nft)
}

#[test]
fn loses_no_rule_v28_legacy() -> Result<()> {
    loses_no_rule(Layout::V28, Legacy)
}

fn loses_no_rule(layout: Layout, backend: Backend) -> Result<()> {
    let lab = Lab::new(layout, backend, ForwardPolicy::Drop)?;
    let deployment = Deployment::node_only(&Settings::default())?;
    let writer = SecondWriter::start(lab.node(), backend);
    for _ in 0..ROUNDS {
        writer.let_write(2)?;
        deployment.agent(&lab.wire, &["harden", "--allow", "80/tcp", "--once"])?.expect_code(0)?;
        deployment.agent(&lab.wire, &["revert", "--all"])?.expect_code(0)?;
    }
    let written = writer.stop()?;
    let lost = missing(lab.node(), backend, written)?;
    ensure!(lost.is_empty(), "{} of {} rules are gone: {lost:#?}", lost.len(), written * 2);
    Ok(())
}

/// It may undo what the agent wrote while it had the table in its hands; the next look puts that back.
#[test]
fn beside_a_writer_that_takes_no_lock_nothing_is_lost_in_the_end() -> Result<()> {
    let lab = Lab::new(Layout::V28, Legacy, ForwardPolicy::Accept)?;
    let deployment = Deployment::new(&Settings::default())?;
    let agent = deployment.start_agent(&lab.wire)?;
    let writer = SecondWriter::start_unlocked(lab.node(), deployment.path("other.lock"));
    let mut closed = order(0, &[(V4, "tcp", INGRESS)]);
    let mut open = order(0, &[]);
    open["allow"] = json!(["80/tcp", "8080/tcp"]);
    for round in 0..ORDERS {
        let body = if round % 2 == 0 { &mut open } else { &mut closed };
        body["sequence"] = (round + 1).into();
        let response = send(&deployment, &lab.wire, body)?;
        ensure!(response.status == 200, "{response:?}");
    }
    let written = writer.stop()?;
    let lost = missing(lab.node(), Legacy, written)?;
    ensure!(lost.is_empty(), "{} of {} rules are gone: {lost:#?}", lost.len(), written * 2);
    wait_for("the ACCEPT to be narrow", Duration::from_secs(15), || {
        expect::narrow(lab.node(), Legacy).map_err(|rules| format!("{rules}\n{}", agent.log()))
    })?;
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}
