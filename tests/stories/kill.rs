//! `kill -9` at any instant of a change: each table is whole, and the next start brings the node to what the ledger
//! says, old or new.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::{
    fs, panic, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{
        self,
        Backend::{self, Legacy, Nft},
        ForwardPolicy, Layout,
    },
    lab::{
        Family::{self, V4},
        INGRESS, INGRESS_UDP, Lab, RUN,
    },
    order::{order, send},
    process::run,
    programs::{self, Running},
    wait::wait_for,
};

/// Of each change in each flavour: together more than 200.
const ROUNDS: u64 = 34;
/// How soon after its next start the agent has everything in order.
const SOON: Duration = Duration::from_secs(5);
/// What `harden` closes in the lab.
const CLOSED: [(Family, &str, u16); 3] = [(V4, "tcp", INGRESS), (V4, "udp", INGRESS_UDP), (V4, "tcp", RUN)];
const HARDEN: [&str; 4] = ["harden", "--allow", "80/tcp", "--once"];
const REVERT: [&str; 2] = ["revert", "--all"];

#[test]
fn while_an_order_is_carried_out_nft() -> Result<()> {
    Scene::new(Nft)?.rounds(Change::Order)
}

#[test]
fn while_an_order_is_carried_out_legacy() -> Result<()> {
    Scene::new(Legacy)?.rounds(Change::Order)
}

#[test]
fn while_hardening_nft() -> Result<()> {
    Scene::new(Nft)?.rounds(Change::Harden)
}

#[test]
fn while_hardening_legacy() -> Result<()> {
    Scene::new(Legacy)?.rounds(Change::Harden)
}

#[test]
fn while_reverting_nft() -> Result<()> {
    Scene::new(Nft)?.rounds(Change::Revert)
}

#[test]
fn while_reverting_legacy() -> Result<()> {
    Scene::new(Legacy)?.rounds(Change::Revert)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Order,
    Harden,
    Revert,
}

/// The guard without counters, and all tables of iptables by family.
type Tables = [String; 3];

struct Scene {
    lab: Lab,
    deployment: Deployment,
    /// As Docker left it.
    pristine: Tables,
    /// The guard stands and closes nothing.
    armed: Tables,
    closed: Tables,
}

impl Scene {
    fn new(backend: Backend) -> Result<Self> {
        let lab = Lab::new(Layout::V28, backend, ForwardPolicy::Accept)?;
        let deployment = Deployment::new(&Settings::default())?;
        deployment.prepend("max_new_per_hour = 1000000")?;
        let pristine = tables(&lab)?;
        let agent = deployment.start_agent(&lab.wire)?;
        let armed = tables(&lab)?;
        agent.kill()?;
        deployment.agent(&lab.wire, &HARDEN)?.expect_code(0)?;
        let closed = tables(&lab)?;
        ensure!(pristine.iter().zip(&closed).all(|(before, after)| before != after), "not every table changes");
        Ok(Self { lab, deployment, pristine, armed, closed })
    }

    fn rounds(&self, change: Change) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(change as u64);
        let (old, new) = match change {
            Change::Order => (&self.armed, &self.closed),
            Change::Harden => (&self.pristine, &self.closed),
            Change::Revert => (&self.closed, &self.pristine),
        };
        let limit = self.undisturbed(change, old)?;
        let (mut whole, mut between, mut taken, mut slowest) = (0, 0, 0, Duration::ZERO);
        for round in 1..=ROUNDS {
            let agent = self.prepare(change, old)?;
            // The ledger is written early: every other round gives that more than its share.
            let instant = limit.mul_f64(random.f64().powi(if round % 2 == 0 { 1 } else { 2 }));
            self.cut_short(change, round, agent, instant)?;
            let cut = tables(&self.lab)?;
            for (table, standing) in cut.iter().enumerate() {
                ensure!(
                    [&old[table], &new[table]].contains(&standing),
                    "{change:?} killed after {instant:?}: half a table:\n{standing}"
                );
            }
            *(if cut == *old || cut == *new { &mut whole } else { &mut between }) += 1;
            let started = Instant::now();
            let agent = self.deployment.start_agent(&self.lab.wire)?;
            let ended = wait_for("the ledger's state in the kernel", SOON.saturating_sub(started.elapsed()), || {
                let standing = tables(&self.lab).map_err(|error| error.to_string())?;
                let settled = [&self.armed, &self.closed].contains(&&standing);
                if settled { Ok(standing) } else { Err(format!("{standing:#?}\n{}", agent.log())) }
            })?;
            slowest = slowest.max(started.elapsed());
            taken += u64::from((ended == self.closed) != (change == Change::Revert));
            agent.kill()?;
        }
        println!(
            "{}, {change:?} killed {ROUNDS} times within {limit:.0?}: {taken} went on to the new state, the others \
             back to the old; {whole} kills found all tables of one age, {between} did not; slowest start {slowest:.2?}",
            self.lab.backend
        );
        let mut left = fs::read_dir(self.deployment.path("state"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        left.sort();
        ensure!(left == ["ledger.json", "lock"], "{left:?}");
        ensure!(taken > 0 && taken < ROUNDS, "the kills came all before or all after the ledger was written");
        Ok(())
    }

    /// How long the change takes.
    fn undisturbed(&self, change: Change, old: &Tables) -> Result<Duration> {
        let agent = self.prepare(change, old)?;
        let started = Instant::now();
        match change {
            Change::Order => {
                let response = send(&self.deployment, &self.lab.wire, &order(1, &CLOSED))?;
                ensure!(response.text.matches("\"enforced\"").count() == CLOSED.len(), "{response:?}");
            }
            Change::Harden => drop(self.deployment.agent(&self.lab.wire, &HARDEN)?.expect_code(0)?),
            Change::Revert => drop(self.deployment.agent(&self.lab.wire, &REVERT)?.expect_code(0)?),
        }
        let took = started.elapsed();
        agent.map_or(Ok(()), Running::kill)?;
        Ok(took)
    }

    /// The state before the change; the daemon, where it is the one who is killed.
    fn prepare(&self, change: Change, old: &Tables) -> Result<Option<Running>> {
        let agent = match change {
            Change::Order | Change::Harden => {
                self.deployment.agent(&self.lab.wire, &REVERT)?.expect_code(0)?;
                if change == Change::Order { Some(self.deployment.start_agent(&self.lab.wire)?) } else { None }
            }
            Change::Revert => {
                self.deployment.agent(&self.lab.wire, &HARDEN)?.expect_code(0)?;
                None
            }
        };
        let standing = tables(&self.lab)?;
        ensure!(standing == *old, "before {change:?}:\n{standing:#?}\nnot\n{old:#?}");
        Ok(agent)
    }

    /// Begins the change and kills who carries it out at `instant` of it.
    fn cut_short(&self, change: Change, round: u64, agent: Option<Running>, instant: Duration) -> Result<()> {
        let words: &[&str] = if change == Change::Harden { &HARDEN } else { &REVERT };
        match agent {
            Some(agent) => thread::scope(|scope| {
                let body = order(round + 1, &CLOSED);
                let answer = scope.spawn(move || send(&self.deployment, &self.lab.wire, &body));
                // Not a wait for anything: the instant is what the story is about.
                thread::sleep(instant);
                agent.kill()?;
                // Whether an answer came in time does not matter.
                answer.join().unwrap_or_else(|panic| panic::resume_unwind(panic)).ok();
                Ok(())
            }),
            None => {
                let mut command = programs::agent(self.lab.node())?;
                command.args(words).arg("--config").arg(self.deployment.path("agent.toml"));
                let running = Running::start(&mut command, "killed", &self.deployment.path(""))?;
                thread::sleep(instant);
                running.kill().context("kill")
            }
        }
    }
}

fn tables(lab: &Lab) -> Result<Tables> {
    let save = |family| docker_rules::save_family(lab.node(), lab.backend, family);
    // One question, and not of the table by its name: what a killed agent had begun may just bring or remove it.
    let guard = run(lab.node().command("nft").args(["--stateless", "list", "ruleset", "inet"]))?;
    Ok([guard, save("iptables")?, save("ip6tables")?])
}
