//! While the agent changes rules, another program that does the same loses none of its own.

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy, Layout,
    },
    lab::Lab,
    second_writer::{SecondWriter, missing},
};

const ROUNDS: usize = 10;

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
