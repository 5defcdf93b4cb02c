//! The swarm on the machines, and what its operator does with it.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use deadlight_tests::{image, lab::Family, netns::Netns, wait::wait_for};

use crate::{
    fleet::Fleet,
    lab::{Lab, NODES, Node, on_each},
};

/// A task may be scheduled, fail once over a busy network, and be scheduled again, on emulated machines that share two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Three nodes in one swarm, with an agent that can be started on each.
#[derive(Debug)]
pub(crate) struct Swarm {
    pub(crate) fleet: Fleet,
    lab: Lab,
}

impl Swarm {
    pub(crate) fn boot() -> Result<Self> {
        let lab = Lab::boot()?;
        let [manager, workers @ ..] = &NODES;
        let address = |node: &Node| node.at(Family::V4, 2377);
        lab.on(manager, &format!("docker swarm init --advertise-addr {}", address(manager).ip()))?;
        let token = lab.on(manager, "docker swarm join-token --quiet worker")?;
        for worker in workers {
            let (own, to) = (address(worker).ip(), address(manager));
            lab.on(worker, &format!("docker swarm join --advertise-addr {own} --token {} {to}", token.trim()))?;
        }
        Ok(Self { fleet: Fleet::new(&lab)?, lab })
    }

    /// The internet.
    pub(crate) fn inet(&self) -> &Netns {
        &self.lab.inet
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Runs a shell command on a node, which must succeed.
    pub(crate) fn on(&self, node: &Node, command: &str) -> Result<String> {
        self.lab.on(node, command)
    }

    /// `docker service create`: one task of our image. `options` publish and place it, `command` is what it runs.
    pub(crate) fn create_service(&self, name: &str, options: &str, command: &str) -> Result<()> {
        let create = format!(
            "docker service create --detach --no-resolve-image --stop-signal SIGKILL --restart-delay 0s \
             --update-delay 0s --name {name} {options} {} {command}",
            image::NAME
        );
        self.manage(&create).map(drop)
    }

    /// Waits until a service has its task, and returns the node on which it runs.
    pub(crate) fn place_of(&self, service: &str) -> Result<&'static Node> {
        self.wait_for_task(service, "")?;
        let task = self.task(service)?;
        NODES.iter().find(|node| task.starts_with(node.name)).with_context(|| format!("a task on no node: {task}"))
    }

    /// `docker service update`; returns when another task runs.
    pub(crate) fn update_service(&self, name: &str, options: &str) -> Result<()> {
        let old = self.task(name)?;
        self.manage(&format!("docker service update --detach --no-resolve-image {options} {name}"))?;
        self.wait_for_task(name, &old)
    }

    /// `docker service rm`; returns when no node has a container of it.
    pub(crate) fn remove_service(&self, name: &str) -> Result<()> {
        self.manage(&format!("docker service rm {name}"))?;
        self.wait_for_no_container(&format!("--filter label=com.docker.swarm.service.name={name}"))
    }

    /// `docker run` on one node.
    pub(crate) fn run_container(&self, node: &Node, name: &str, options: &str, command: &str) -> Result<()> {
        let image = image::NAME;
        self.on(node, &format!("docker run --detach --stop-signal SIGKILL --name {name} {options} {image} {command}"))?;
        Ok(())
    }

    /// Starts a program of the node itself, which goes on until the next story.
    pub(crate) fn run_process(&self, node: &Node, name: &str, command: &str) -> Result<()> {
        let start = format!("setsid {command} </dev/null >/var/log/{name}.log 2>&1 & echo $! >/run/story-{name}");
        self.on(node, &start).map(drop)
    }

    /// Stops and starts a node's dockerd.
    pub(crate) fn restart_engine(&self, node: &Node) -> Result<()> {
        self.restart_engine_with(node, "")
    }

    /// The same with more flags, until the next restart.
    pub(crate) fn restart_engine_with(&self, node: &Node, flags: &str) -> Result<()> {
        self.on(
            node,
            &format!("/lab/engine.sh stop && lab_dockerd=\"${{lab_dockerd:-}} {flags}\" /lab/engine.sh start"),
        )
        .map(drop)
    }

    /// A command on the manager.
    pub(crate) fn manage(&self, command: &str) -> Result<String> {
        self.on(&NODES[0], command)
    }

    /// The first process of a container on a node; `filter` is as for `docker ps`.
    pub(crate) fn pid(&self, node: &Node, filter: &str) -> Result<String> {
        let inspect = format!("docker inspect --format '{{{{.State.Pid}}}}' $(docker ps --quiet --filter {filter})");
        Ok(self.on(node, &inspect)?.trim().to_owned())
    }

    /// As it was before any story: no service, container, agent, or other program.
    pub(crate) fn clean(&self) -> Result<()> {
        wait_for("the manager", PATIENCE, || {
            self.manage("docker service ls --quiet | xargs -r docker service rm").map_err(|error| format!("{error:#}"))
        })?;
        self.fleet.forget()?;
        self.fleet.configure("")?;
        on_each(|node| self.fleet.remove_agent(&self.lab, node))?;
        for script in NODES.iter().map(|node| self.lab.before_network(node)).filter(|script| script.exists()) {
            fs::remove_file(script)?;
        }
        on_each(|node| {
            let containers = "docker ps --all --quiet --filter name=^story | xargs -r docker rm --force";
            self.on(node, &format!("{containers}; for pid in $(cat /run/story-* 2>/dev/null); do kill $pid || :; done; rm -f /run/story-*"))
        })?;
        self.wait_for_no_container("")
    }

    /// What one wants to see of the nodes when a story failed.
    pub(crate) fn state(&self) -> String {
        let look = "for file in agent dockerd; do echo \"# $file.log\"; tail -n 30 /var/log/$file.log; done; \
                    echo '# iptables-save'; iptables-save; echo '# ip6tables-save'; ip6tables-save";
        let of = |node: &'static Node| {
            let seen = self.lab.ask(node, look).map_or_else(|error| format!("{error:#}"), |ended| ended.stdout);
            format!("## node {}, Docker {}\n{seen}", node.name, node.engine)
        };
        NODES.iter().map(of).collect::<Vec<_>>().join("\n")
    }

    /// Node and id of the task that runs.
    fn task(&self, service: &str) -> Result<String> {
        let format = "{{.CurrentState}} {{.ID}} {{.Node}}";
        let listing = self.manage(&format!("docker service ps --format '{format}' --no-trunc {service}"))?;
        let running = listing.lines().find(|line| line.starts_with("Running"));
        let words = running.with_context(|| format!("no task of {service} runs: {listing}"))?.rsplit(' ');
        Ok(words.take(2).collect::<Vec<_>>().join(" "))
    }

    fn wait_for_task(&self, service: &str, old: &str) -> Result<()> {
        wait_for(&format!("a new task of {service}"), PATIENCE, || match self.task(service) {
            Ok(task) if task != old => Ok(()),
            other => Err(format!("{other:?}")),
        })
    }

    fn wait_for_no_container(&self, filter: &str) -> Result<()> {
        wait_for("the end of the containers", PATIENCE, || {
            match on_each(|node| self.on(node, &format!("docker ps --quiet {filter}"))) {
                Ok(left) if left.iter().all(String::is_empty) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    }
}
