//! After `revert --all` the tables are as if Deadlight had never run.

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::Answer,
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy,
        Layout::{self, V20_10, V26, V28},
    },
    lab::{Family, INGRESS, Lab, RUN},
};

use crate::expect;

#[test]
fn byte_for_byte_v20_10_nft() -> Result<()> {
    byte_for_byte(V20_10, Nft)
}

#[test]
fn byte_for_byte_v20_10_legacy() -> Result<()> {
    byte_for_byte(V20_10, Legacy)
}

#[test]
fn byte_for_byte_v26_nft() -> Result<()> {
    byte_for_byte(V26, Nft)
}

#[test]
fn byte_for_byte_v26_legacy() -> Result<()> {
    byte_for_byte(V26, Legacy)
}

#[test]
fn byte_for_byte_v28_nft() -> Result<()> {
    byte_for_byte(V28, Nft)
}

#[test]
fn byte_for_byte_v28_legacy() -> Result<()> {
    byte_for_byte(V28, Legacy)
}

fn byte_for_byte(layout: Layout, backend: Backend) -> Result<()> {
    let lab = Lab::new(layout, backend, ForwardPolicy::Drop)?;
    let deployment = Deployment::node_only(&Settings::default())?;
    let before = lab.saved_rules()?;
    deployment.agent(&lab.wire, &["harden", "--allow", "80/tcp", "--once"])?.expect_code(0)?;
    ensure!(lab.saved_rules()? != before && !lab.native_tables()?.is_empty(), "harden changed nothing");

    deployment.agent(&lab.wire, &["revert", "--all"])?.expect_code(0)?;
    let after = lab.saved_rules()?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(lab.native_tables()?.is_empty(), "left: {:?}", lab.native_tables()?);
    expect::tcp(lab.inet(), Family::V4.node(INGRESS), Answer::Data)?;
    expect::tcp(lab.inet(), Family::V6.node(INGRESS), Answer::OpenNoData)
}

#[test]
fn one_port_alone_opens_again() -> Result<()> {
    for backend in [Nft, Legacy] {
        let lab = Lab::new(V26, backend, ForwardPolicy::Drop)?;
        let deployment = Deployment::node_only(&Settings::default())?;
        deployment.agent(&lab.wire, &["harden", "--allow", "80/tcp", "--once"])?.expect_code(0)?;
        deployment.agent(&lab.wire, &["revert", "8080/tcp"])?.expect_code(0)?;
        expect::tcp(lab.inet(), Family::V4.node(INGRESS), Answer::Data)?;
        expect::tcp(lab.inet(), Family::V6.node(INGRESS), Answer::OpenNoData)?;
        expect::closed(&lab.wire, &Family::BOTH.map(|family| (family, RUN)))?;
    }
    Ok(())
}
