//! dockerd puts its wide rules back again and again; not one SYN is answered meanwhile.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy,
        Layout::{self, V20_10, V26, V28},
    },
    lab::{
        Family::{self, V4, V6},
        INGRESS, Lab,
    },
    order,
    syn_watch::SynWatch,
    wait::wait_for,
};

use crate::expect;

const ROUNDS: usize = 10;
/// Less than what passes between two looks that nothing calls for.
const SOON: Duration = Duration::from_secs(25);

#[test]
fn never_answers_v20_10_nft_ipv4() -> Result<()> {
    never_answers(V20_10, Nft, V4)
}

#[test]
fn never_answers_v26_nft_ipv6() -> Result<()> {
    never_answers(V26, Nft, V6)
}

#[test]
fn never_answers_v26_legacy_ipv4() -> Result<()> {
    never_answers(V26, Legacy, V4)
}

#[test]
fn never_answers_v28_legacy_ipv6() -> Result<()> {
    never_answers(V28, Legacy, V6)
}

#[test]
fn never_answers_v28_nft_ipv4() -> Result<()> {
    never_answers(V28, Nft, V4)
}

fn never_answers(layout: Layout, backend: Backend, family: Family) -> Result<()> {
    let lab = Lab::new(layout, backend, ForwardPolicy::Accept)?;
    let deployment = Deployment::new(&Settings::default())?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let watch = SynWatch::start(lab.inet(), family.scanner(), family.node(INGRESS))?;
    watch.see_open()?;

    order::enforce(&deployment, &lab.wire, 1, &[(family, "tcp", INGRESS)])?;
    let closed = watch.so_far();
    for _ in 0..ROUNDS {
        lab.reinsert_wide(INGRESS)?;
        watch.observe(20)?;
    }
    let tried = watch.since(closed);
    ensure!(tried.answered == 0, "{tried:?} while dockerd re-inserted its rules");

    let published = Instant::now();
    let narrow = || wait_for("the ACCEPT to be narrow again", SOON, || expect::narrow(lab.node(), backend));
    narrow()?;
    let tightened = published.elapsed();
    // Right after a repair the tables are as they were before it.
    for _ in 0..2 {
        lab.reinsert_wide(INGRESS)?;
        narrow()?;
    }
    println!("{tried:?}; tightened {tightened:.2?} after the last of {ROUNDS} publications");
    Ok(())
}
