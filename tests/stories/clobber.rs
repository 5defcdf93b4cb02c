//! What other programs do to the rules while the agent runs: what was lost is put back, no closed port answers
//! meanwhile, and what is theirs stays. A twin of the node, where the same happened before Deadlight came, shows how
//! the tables shall be in the end.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

mod programs;
mod rules;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::Answer,
    deployment::{Deployment, Settings},
    docker_rules::{self, Backend, ForwardPolicy, Layout},
    lab::{Family, HOST, INGRESS, Lab},
    order,
    process::run,
    programs::Running,
    syn_watch::{SynWatch, Tried},
    wait::wait_for,
};

use crate::expect;

/// Longer than two rounds of the agent.
const SOON: Duration = Duration::from_secs(15);
const CLOSED: [(Family, u16); 4] =
    [(Family::V4, HOST), (Family::V6, HOST), (Family::V4, INGRESS), (Family::V6, INGRESS)];

/// What an event does to the agent's own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Even where rules of others are gone.
    Nothing,
    /// What stands among Docker's rules; the guard is there all the while.
    Docker,
    /// The guard as well: nobody can keep a port closed then.
    Guard,
}

/// Prepares twice, lets it happen before the agent closes the ports of one node and after it closed those of the
/// other, and waits until both have the same tables.
fn put_back<P>(
    (layout, backend): (Layout, Backend),
    loss: Loss,
    prepare: impl Fn(&mut Lab) -> Result<P>,
    event: impl Fn(&Lab, &P) -> Result<()>,
) -> Result<()> {
    let mut twin = Lab::new(layout, backend, ForwardPolicy::Accept)?;
    let prepared = prepare(&mut twin)?;
    event(&twin, &prepared)?;
    for family in Family::BOTH {
        expect::tcp(twin.inet(), family.node(HOST), Answer::Data)?;
    }
    let (_deployment, _agent) = close(&twin)?;
    let wanted = tables(&twin)?;

    let mut lab = Lab::new(layout, backend, ForwardPolicy::Accept)?;
    let prepared = prepare(&mut lab)?;
    let watches = CLOSED
        .map(|(family, port)| SynWatch::start(lab.inet(), family.scanner(), family.node(port)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    watches.iter().try_for_each(SynWatch::see_open)?;
    let (_deployment, agent) = close(&lab)?;
    let closed: Vec<Tried> = watches.iter().map(SynWatch::so_far).collect();
    event(&lab, &prepared)?;
    let happened = Instant::now();
    wait_for("the rules to be as on the twin", SOON, || match tables(&lab) {
        Ok(tables) if tables == wanted => Ok(()),
        Ok(tables) => Err(format!("wanted:\n{wanted}\nstanding:\n{tables}\n{}", agent.log())),
        Err(error) => Err(format!("{error:#}")),
    })?;
    let repaired = happened.elapsed();

    let mut answered = 0;
    for (watch, mark) in watches.iter().zip(closed) {
        watch.observe(20)?;
        answered += watch.since(mark).answered;
    }
    println!("{backend}: {loss:?} lost, put back after {repaired:.2?}; SYNs answered: {answered}");
    ensure!(answered == 0 || loss == Loss::Guard, "{answered} SYNs to closed ports were answered");
    let says_drift = agent.log().contains("drift");
    ensure!(says_drift == (loss != Loss::Nothing), "{loss:?} lost, and the log says:\n{}", agent.log());
    expect::closed(&lab.wire, &CLOSED)
}

/// Starts the agent and closes [`CLOSED`].
fn close(lab: &Lab) -> Result<(Deployment, Running)> {
    let deployment = Deployment::new(&Settings::default())?;
    let agent = deployment.start_agent(&lab.wire)?;
    order::enforce(&deployment, &lab.wire, 1, &CLOSED.map(|(family, port)| (family, "tcp", port)))?;
    Ok((deployment, agent))
}

/// Everything in the kernel, but the counters.
fn tables(lab: &Lab) -> Result<String> {
    let both = docker_rules::save(lab.node(), Backend::Nft)? + &docker_rules::save(lab.node(), Backend::Legacy)?;
    Ok(both + &run(lab.node().command("nft").args(["--stateless", "list", "table", "inet", "deadlight"]))?)
}
