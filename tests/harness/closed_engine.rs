//! A node with a real engine on which the loop has closed what nobody allowed, and somebody who keeps trying.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{
    answer::Answer,
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy},
    dockerd::Dockerd,
    expect,
    lab::{ALLOWED, Family, INGRESS, RUN, Wire},
    process::run,
    programs::Running,
    syn_watch::SynWatch,
    wait::wait_for,
};

/// What the operator wrote, which stays.
const OPERATORS: &str = "DOCKER-USER -s 203.0.113.99/32 -j DROP";

/// The engine may be updated, restarted and replaced: whatever it does, [`Self::stays_closed`].
#[derive(Debug)]
pub struct ClosedEngine<'a> {
    watches: Vec<(Family, SynWatch)>,
    agent: Running,
    _deployment: Deployment,
    /// The engine; the service behind [`INGRESS`] is called `stats`.
    pub dockerd: Dockerd<'a>,
    wire: &'a Wire,
    backend: Backend,
}

impl<'a> ClosedEngine<'a> {
    /// Starts the engine with three published ports, and lets scanner and agent close two of them to `families`.
    pub fn new(wire: &'a Wire, backend: Backend, families: &[Family]) -> Result<Self> {
        let dockerd = publishing(wire, backend)?;
        let mut iptables = wire.node.command(backend.tool("iptables", ""));
        run(iptables.args(["--wait", "-I"]).args(OPERATORS.split(' ')))?;
        let socket = dockerd.socket();
        let settings = Settings {
            families,
            // The swarm's own ports are protected, and not what this is about.
            allow: "80,2377,7443,7946/tcp",
            docker_socket: &socket,
            ..Settings::default()
        };
        let deployment = Deployment::new(&settings)?;
        let agent = deployment.start_agent(wire)?;
        let ended = deployment.scanner(wire, &["run", "--once"])?;
        let said = format!("{}\n{}\nagent:\n{}", ended.stdout, ended.stderr, agent.log());
        ensure!(ended.code()? == 0, "exit status {}: {said}", ended.code()?);
        if families.contains(&Family::V4) {
            ensure!(ended.stdout.contains("stats"), "the cause does not name the service: {said}");
        }
        let mut watches = Vec::new();
        for &family in families {
            let watch = |port| SynWatch::start(&wire.inet, family.scanner(), family.node(port));
            watch(ALLOWED)?.see_open()?;
            watches.push((family, watch(INGRESS)?));
        }
        let closed = Self { watches, agent, _deployment: deployment, dockerd, wire, backend };
        closed.stays_closed()?;
        Ok(closed)
    }

    /// Demands that no SYN was ever answered, that Docker's ACCEPT is soon narrow again, and that the operator's rule
    /// and port are there. Returns after how long, at most, the ACCEPT was narrow.
    pub fn stays_closed(&self) -> Result<Duration> {
        let Self { wire, backend, .. } = *self;
        let since = Instant::now();
        // Docker writes its rules a while after it says that it is ready.
        self.watches.iter().try_for_each(|(_, watch)| watch.observe(100).map(drop))?;
        wait_for("the ACCEPT to be narrow", Duration::from_secs(15), || expect::narrow(&wire.node, backend))?;
        let took = since.elapsed();
        let rules = run(&mut wire.node.command(backend.tool("iptables", "-save")))?;
        ensure!(rules.lines().any(|rule| rule == format!("-A {OPERATORS}")), "the operator's rule is gone:\n{rules}");
        let families = self.watches.iter().map(|&(family, _)| family);
        expect::closed(wire, &families.clone().map(|family| (family, RUN)).collect::<Vec<_>>())?;
        for family in families {
            expect::answers(wire, family, ALLOWED, expect::behind_the_mesh(family))?;
        }
        for (family, watch) in &self.watches {
            let tried = watch.so_far();
            ensure!(tried.answered == 0, "{family}: {tried:?}\nagent:\n{}", self.agent.log());
        }
        Ok(took)
    }
}

/// Starts the engine, and returns when its ports answer: two of the mesh, one of `docker run`.
pub fn publishing(wire: &Wire, backend: Backend) -> Result<Dockerd<'_>> {
    let mut dockerd = Dockerd::start(wire, backend, ForwardPolicy::Accept)?;
    dockerd.create_service("stats", INGRESS)?;
    dockerd.create_service("site", ALLOWED)?;
    dockerd.run_published("web", RUN)?;
    for family in Family::BOTH {
        let mesh = expect::behind_the_mesh(family);
        for (port, expected) in [(INGRESS, mesh), (ALLOWED, mesh), (RUN, Answer::Data)] {
            expect::answers(wire, family, port, expected)?;
        }
    }
    Ok(dockerd)
}
