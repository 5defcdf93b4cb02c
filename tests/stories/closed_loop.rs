//! The scanner finds what should not be open, the agent closes it, the scanner proves it.

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy::{self, Accept, Drop},
        Layout::{self, V20_10, V26, V28},
    },
    lab::{
        Family::{self, V4, V6},
        HOST, INGRESS, Lab, RUN,
    },
    process::run_with_input,
};

use crate::expect;

const PORTS: [u16; 3] = [INGRESS, RUN, HOST];

fn the_loop_closes(layout: Layout, backend: Backend, forward: ForwardPolicy, family: Family) -> Result<()> {
    let lab = Lab::new(layout, backend, forward)?;
    let deployment = Deployment::new(&Settings { families: &[family], ..Settings::default() })?;
    let agent = deployment.start_agent(&lab.wire)?;

    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?;
    let said = format!("{}\n{}\nagent:\n{}", ended.stdout, ended.stderr, agent.log());
    ensure!(ended.code()? == 0, "exit status {}: {said}", ended.code()?);
    for port in PORTS {
        ensure!(ended.stdout.contains(&format!("{port}/tcp")), "{port}/tcp is not mentioned: {said}");
    }
    expect::closed(&lab.wire, &PORTS.map(|port| (family, port)))?;
    expect::allowed_answers(&lab, family)?;
    expect::reachable_inside(&lab)
}

macro_rules! combinations {
    ($($name:ident: $layout:expr, $backend:expr, $forward:expr, $family:expr;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            the_loop_closes($layout, $backend, $forward, $family)
        })*
    };
}

combinations! {
    v20_10_nft_accept_ipv4: V20_10, Nft, Accept, V4;
    v20_10_nft_accept_ipv6: V20_10, Nft, Accept, V6;
    v20_10_legacy_drop_ipv4: V20_10, Legacy, Drop, V4;
    v20_10_legacy_drop_ipv6: V20_10, Legacy, Drop, V6;
    v26_nft_drop_ipv4: V26, Nft, Drop, V4;
    v26_nft_drop_ipv6: V26, Nft, Drop, V6;
    v26_legacy_accept_ipv4: V26, Legacy, Accept, V4;
    v26_legacy_accept_ipv6: V26, Legacy, Accept, V6;
    v28_nft_accept_ipv4: V28, Nft, Accept, V4;
    v28_nft_drop_ipv6: V28, Nft, Drop, V6;
    v28_legacy_drop_ipv4: V28, Legacy, Drop, V4;
    v28_legacy_accept_ipv6: V28, Legacy, Accept, V6;
}

/// Somebody on the node answers the scanner, and only the scanner, with RST.
#[test]
fn a_banned_vantage_point_is_blind_and_says_so() -> Result<()> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let deployment = Deployment::new(&Settings::default())?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let ban = "table inet ban { chain in { type filter hook prerouting priority -250; \
               ip saddr 198.51.100.1 meta l4proto tcp reject with tcp reset; \
               ip6 saddr 2001:db8:51::/64 meta l4proto tcp reject with tcp reset; }; }\n";
    run_with_input(lab.node().command("nft").args(["-f", "-"]), ban)?;
    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(3)?;
    ensure!(ended.stdout.contains("BLIND") && !ended.stdout.contains("PROOF"), "{ended:?}");
    Ok(())
}

#[test]
fn observe_changes_nothing_and_says_so() -> Result<()> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let deployment = Deployment::new(&Settings { mode: "observe", ..Settings::default() })?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let before = (lab.saved_rules()?, lab.native_tables()?);

    let ended = deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(1)?;
    ensure!(ended.stdout.contains("observed"), "{ended:?}");
    ensure!((lab.saved_rules()?, lab.native_tables()?) == before, "rules changed in observe mode");

    let address = "2001:db8:51::11";
    let by_address =
        deployment.scanner(&lab.wire, &["explain", "n1:8080/tcp", "--address", address])?.expect_code(0)?;
    let findings = deployment.scanner(&lab.wire, &["findings", "--output", "json"])?.expect_code(1)?;
    let findings: serde_json::Value = serde_json::from_str(&findings.stdout)?;
    let all = findings["findings"].as_array().context("findings")?;
    let named = all.iter().find(|finding| finding["address"] == address && finding["port"] == 8080);
    let id = named.and_then(|finding| finding["id"].as_str()).context("an id")?;
    let by_id = deployment.scanner(&lab.wire, &["explain", id])?.expect_code(0)?;
    for explained in [by_address, by_id] {
        for wanted in
            ["8080/tcp on n1\ncause: ", "the way of a packet", "allowlist: no entry", "to close it, these would stand"]
        {
            ensure!(explained.stdout.contains(wanted), "no {wanted:?} in {explained:?}");
        }
    }
    // There is no Docker here, and the doctor says so.
    let doctor = deployment.scanner(&lab.wire, &["doctor"])?.expect_code(1)?;
    ensure!(doctor.stdout.contains("?? agent of n1: observes: it closes nothing"), "{doctor:?}");
    Ok(())
}
