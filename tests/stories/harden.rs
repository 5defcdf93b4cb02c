//! `harden`: everything published is closed to the outside but the allowlist, without any scanner.

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, udp_answer},
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy::{self, Accept, Drop},
        Layout::{self, V20_10, V26, V28},
    },
    lab::{Family, HOST, INGRESS, INGRESS_UDP, Lab, RUN},
};

use crate::expect;

const HARDEN: [&str; 4] = ["harden", "--allow", "80/tcp", "--once"];

#[test]
fn closes_what_is_published_v20_10_nft_accept() -> Result<()> {
    closes_what_is_published(V20_10, Nft, Accept)
}

#[test]
fn closes_what_is_published_v26_legacy_drop() -> Result<()> {
    closes_what_is_published(V26, Legacy, Drop)
}

#[test]
fn closes_what_is_published_v28_nft_drop() -> Result<()> {
    closes_what_is_published(V28, Nft, Drop)
}

#[test]
fn closes_what_is_published_v28_legacy_accept() -> Result<()> {
    closes_what_is_published(V28, Legacy, Accept)
}

fn closes_what_is_published(layout: Layout, backend: Backend, forward: ForwardPolicy) -> Result<()> {
    let lab = Lab::new(layout, backend, forward)?;
    let deployment = Deployment::node_only(&Settings::default())?;
    deployment.agent(&lab.wire, &HARDEN)?.expect_code(0)?;
    for family in Family::BOTH {
        expect::closed(&lab.wire, &[(family, INGRESS), (family, RUN)])?;
        expect::allowed_answers(&lab, family)?;
        expect::tcp(lab.inet(), family.node(HOST), Answer::Data)?;
    }
    let answer = udp_answer(lab.inet(), Family::V4.node(INGRESS_UDP))?;
    ensure!(answer == Answer::Refused, "a closed UDP port says so: {answer:?}");
    expect::reachable_inside(&lab)
}

#[test]
fn a_second_run_changes_nothing_and_says_so() -> Result<()> {
    for (layout, backend) in [(V20_10, Legacy), (V28, Nft)] {
        let lab = Lab::new(layout, backend, Drop)?;
        let deployment = Deployment::node_only(&Settings::default())?;
        deployment.agent(&lab.wire, &HARDEN)?.expect_code(0)?;
        let once = (lab.saved_rules()?, lab.native_tables()?);
        let second = deployment.agent(&lab.wire, &HARDEN)?.expect_code(0)?;
        ensure!((lab.saved_rules()?, lab.native_tables()?) == once, "the second run changed something");
        ensure!(second.stdout.contains("nothing to change"), "{second:?}");
    }
    Ok(())
}

#[test]
fn a_dry_run_changes_nothing() -> Result<()> {
    let lab = Lab::new(V20_10, Nft, Accept)?;
    let deployment = Deployment::node_only(&Settings::default())?;
    let before = (lab.saved_rules()?, lab.native_tables()?);
    let ended = deployment.agent(&lab.wire, &["harden", "--allow", "80/tcp", "--dry-run"])?.expect_code(0)?;
    ensure!(ended.stdout.contains("8080"), "{ended:?}");
    ensure!((lab.saved_rules()?, lab.native_tables()?) == before, "a dry run changed something");
    expect::tcp(lab.inet(), Family::V4.node(INGRESS), Answer::Data)
}
