//! How long a rule stays away that somebody took, and how many SYNs a closed port answers meanwhile. Each round follows
//! the last at once: where nobody announces the loss, that is the whole of the agent's turn.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{self, Backend, ForwardPolicy, Layout},
    lab::{Family, HOST, Lab},
    order,
    process::run,
    programs::Running,
};

use crate::{milliseconds, percentile, probe::Probe, repetitions};

const JUMP: &str = "DOCKER-USER -m comment --comment deadlight -j DEADLIGHT";
/// Between two looks: a look takes about as long.
const PAUSE: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn measure() -> Result<()> {
    let nft: &[Loss] = &[Loss::Guard, Loss::Everything, Loss::Jump];
    for (backend, losses, usual) in [(Backend::Nft, nft, 100), (Backend::Legacy, &[Loss::Guard, Loss::Jump], 25)] {
        let rounds = repetitions(usual)?;
        for loss in losses {
            // An agent that still has announcements of another loss to see to would find this one early.
            let site = Site::new(backend)?;
            let all = site.probe.so_far();
            let (mut times, mut sent) = (Vec::new(), 0);
            for _ in 0..rounds {
                let meanwhile = site.probe.so_far();
                times.push(site.repaired(*loss)?);
                sent += site.probe.since(meanwhile).sent;
                site.make_whole()?;
            }
            times.sort();
            let [p50, p99] = [50, 99].map(|percent| milliseconds(percentile(&times, percent)));
            let answered = site.probe.since(all).answered;
            println!(
                "| {} and back, {backend}, p50 and p99 of {rounds} | {p50}, {p99}; {answered} of {sent} SYNs to closed \
                 ports were answered meanwhile | | |",
                site.command(*loss)
            );
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Guard,
    /// Docker's rules as well.
    Everything,
    /// Of the allowlist, from Docker's chain.
    Jump,
}

/// A node with its agent and a closed port that is probed in both families.
struct Site {
    probe: Probe,
    agent: Running,
    _deployment: Deployment,
    lab: Lab,
    /// The guard as it shall stand.
    guard: String,
}

impl Site {
    fn new(backend: Backend) -> Result<Self> {
        let lab = Lab::new(Layout::V28, backend, ForwardPolicy::Drop)?;
        let probe = Probe::start(&lab.wire, HOST)?;
        let deployment = Deployment::new(&Settings::default())?;
        let agent = deployment.start_agent(&lab.wire)?;
        order::enforce(&deployment, &lab.wire, 1, &Family::BOTH.map(|family| (family, "tcp", HOST)))?;
        let mut site = Self { probe, agent, _deployment: deployment, lab, guard: String::new() };
        site.guard = site.standing_guard()?;
        ensure!(site.has_jump()?, "there is no jump to delete");
        Ok(site)
    }

    /// Takes something away, and waits until it is there again.
    fn repaired(&self, loss: Loss) -> Result<Duration> {
        let command = self.command(loss);
        let mut words = command.split(' ');
        run(self.lab.node().command(words.next().unwrap_or_default()).args(words))?;
        let lost = Instant::now();
        self.until(|| match loss {
            Loss::Guard | Loss::Everything => self.standing_guard().is_ok_and(|guard| guard == self.guard),
            Loss::Jump => self.has_jump().unwrap_or(false),
        })?;
        Ok(lost.elapsed())
    }

    /// Docker writes again what it lost, and the agent what belongs there.
    fn make_whole(&self) -> Result<()> {
        if !docker_rules::save(self.lab.node(), self.lab.backend)?.contains(":DOCKER-USER ") {
            docker_rules::load(self.lab.node(), self.lab.layout, self.lab.backend, ForwardPolicy::Drop)?;
        }
        self.until(|| self.has_jump().unwrap_or(false))
    }

    fn command(&self, loss: Loss) -> String {
        match loss {
            Loss::Guard => "nft delete table inet deadlight".to_owned(),
            Loss::Everything => "nft flush ruleset".to_owned(),
            Loss::Jump => format!("{} --wait -D {JUMP}", self.lab.backend.tool("iptables", "")),
        }
    }

    fn until(&self, stands: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !stands() {
            ensure!(Instant::now() < deadline, "not repaired after {LIMIT:?}:\n{}", self.agent.log());
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn standing_guard(&self) -> Result<String> {
        run(self.lab.node().command("nft").args(["--stateless", "list", "table", "inet", "deadlight"]))
    }

    fn has_jump(&self) -> Result<bool> {
        let save = run(self.lab.node().command(self.lab.backend.tool("iptables", "-save")).args(["-t", "filter"]))?;
        Ok(save.lines().any(|rule| rule == format!("-A {JUMP}")))
    }
}
