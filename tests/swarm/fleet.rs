//! Deadlight on the swarm: an agent for each node, and the scanner outside.

use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use crate::lab::{Lab, NODES, Node, on_each};
use anyhow::{Context, Result};
use deadlight_tests::{
    lab::Family,
    programs::{Ended, built, finish, scanner},
};

/// What may be open: the site, the swarm's own ports, the agent.
const ALLOWED: &str = "80,2377,7443,7946/tcp";
/// What is asked. Few UDP ports: a node sends one port-unreachable a second.
const SWEEP: &str = "tcp = \"80,2375,2377,7443,7946,8080-8099,9000-9099\"\nudp = \"5514\"\n";

/// Certificates by the scanner's own `pki`, and the configuration of all programs; in the directory the nodes share.
#[derive(Debug)]
pub(crate) struct Fleet {
    shared: PathBuf,
}

impl Fleet {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let fleet = Self { shared: lab.shared() };
        fs::copy(built("deadlight-agent")?, fleet.shared.join("deadlight-agent")).context("copy the agent")?;
        let pki = |words: &[&str]| {
            finish(Command::new(built("deadlight-scanner")?).arg("pki").args(words).arg("--dir").arg(&fleet.shared))?
                .expect_code(0)
        };
        pki(&["init"])?;
        pki(&["issue-scanner", "office-a"])?;
        for node in &NODES {
            pki(&["issue-agent", node.name])?;
        }
        fleet.configure("")?;
        let credentials =
            "[tls]\nca = \"ca.crt\"\ncertificate = \"scanner-office-a.crt\"\nkey = \"scanner-office-a.key\"\n";
        fs::write(fleet.shared.join("scanner.toml"), scanner_toml(credentials))?;
        Ok(fleet)
    }

    /// Configures each agent as always, with `more` lines; those that run do not hear of it.
    pub(crate) fn configure(&self, more: &str) -> Result<()> {
        NODES.iter().try_for_each(|node| {
            let file = self.shared.join(format!("{}.toml", node.name));
            fs::write(file, format!("{more}{}", agent_toml(node))).context("configure an agent")
        })
    }

    /// `deadlight-agent WORDS…` on a node, to its end.
    pub(crate) fn agent(&self, lab: &Lab, node: &Node, words: &str) -> Result<Ended> {
        lab.ask(node, &agent_command(node, words))
    }

    /// Starts the agent of every node that has none; returns when they listen.
    pub(crate) fn start_agents(&self, lab: &Lab) -> Result<()> {
        on_each(|node| {
            let run = agent_command(node, "run");
            lab.on(
                node,
                &format!(
                    "[ -e /run/agent.pid ] || {{ setsid {run} </dev/null >/var/log/agent.log 2>&1 & \
                     echo $! >/run/agent.pid; }}; \
                     until busybox nc -w 1 127.0.0.1 7443 </dev/null 2>/dev/null; \
                     do [ -e /proc/$(cat /run/agent.pid) ] || {{ cat /var/log/agent.log >&2; exit 1; }}; sleep 0.1; done"
                ),
            )
        })
        .map(drop)
    }

    /// Ends the agent of a node, if it runs; its rules stay.
    pub(crate) fn stop_agent(&self, lab: &Lab, node: &Node) -> Result<()> {
        let stop = "if [ -e /run/agent.pid ]; then kill $(cat /run/agent.pid) || :; \
                    while [ -e /proc/$(cat /run/agent.pid) ]; do sleep 0.1; done; rm /run/agent.pid; fi";
        lab.on(node, stop).map(drop)
    }

    /// Ends the agent of a node, takes its rules away and forgets what it remembered.
    pub(crate) fn remove_agent(&self, lab: &Lab, node: &Node) -> Result<()> {
        let revert = agent_command(node, "revert --all");
        self.stop_agent(lab, node)?;
        lab.on(node, &format!("[ ! -e /var/lib/deadlight/ledger.json ] || {revert}; rm -rf /var/lib/deadlight/*"))?;
        Ok(())
    }

    /// The full loop: sweep, order, report, proof. Everything unexpected must be closed at its end.
    pub(crate) fn close(&self, lab: &Lab) -> Result<Ended> {
        self.start_agents(lab)?;
        let mut command = scanner(&lab.inet)?;
        command.args(["run", "--once", "--config"]).arg(self.shared.join("scanner.toml"));
        finish(&mut command)?.expect_code(0).context("scanner run --once")
    }

    /// What `scan` says of every node: the open ports that nobody allowed.
    pub(crate) fn scan(&self, lab: &Lab, ports: &str) -> Result<BTreeSet<SocketAddr>> {
        let addresses = NODES.iter().flat_map(|node| Family::BOTH.map(|family| node.at(family, 0).ip().to_string()));
        let mut command = scanner(&lab.inet)?;
        let ended = finish(command.arg("scan").args(addresses).args(["--ports", ports, "--output", "json"]))?;
        let said: Value = serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
        let found = said["findings"].as_array().with_context(|| format!("no findings in {said}"))?;
        let place = |finding: &Value| Some((finding["address"].as_str()?.parse().ok()?, finding["port"].as_u64()?));
        found
            .iter()
            .map(|finding| {
                let (address, port): (IpAddr, u64) = place(finding).with_context(|| format!("{finding}"))?;
                Ok((address, u16::try_from(port)?).into())
            })
            .collect()
    }

    /// What `explain` says, asked on a node: one line of the kind and the names.
    pub(crate) fn explain(&self, lab: &Lab, node: &Node, port: &str) -> Result<String> {
        let ended = self.agent(lab, node, &format!("explain {port}"))?.expect_code(0)?;
        let cause = ended.stdout.lines().find_map(|line| line.strip_prefix("cause: "));
        Ok(cause.with_context(|| ended.stdout.clone())?.to_owned())
    }

    /// The scanner forgets what it has seen.
    pub(crate) fn forget(&self) -> Result<()> {
        for kind in ["db", "db-wal", "db-shm"] {
            let file = self.shared.join("deadlight").with_extension(kind);
            if file.exists() {
                fs::remove_file(file).context("the scanner's database")?;
            }
        }
        Ok(())
    }
}

fn agent_command(node: &Node, words: &str) -> String {
    format!("/lab/deadlight-agent {words} --config /lab/{}.toml", node.name)
}

fn agent_toml(node: &Node) -> String {
    let name = node.name;
    format!(
        "node = {name:?}\nmode = \"enforce\"\nmax_new_per_hour = 1000\n\
         [tls]\nca = \"/lab/ca.crt\"\ncertificate = \"/lab/agent-{name}.crt\"\nkey = \"/lab/agent-{name}.key\"\n"
    )
}

/// Of a scanner outside; `trust` is how it is known.
pub(crate) fn scanner_toml(trust: &str) -> String {
    let node = |node: &Node| {
        let addresses = Family::BOTH.map(|family| node.at(family, 0).ip().to_string());
        let agent = node.at(Family::V4, 7443);
        format!("[[node]]\nname = {:?}\naddresses = {addresses:?}\nagent = \"https://{agent}\"\n", node.name)
    };
    let nodes: String = NODES.iter().map(node).collect();
    format!(
        "[vantage]\nid = \"office-a\"\n[sweep]\n{SWEEP}{nodes}\
         [[allow]]\nports = {ALLOWED:?}\nnodes = [\"*\"]\nowner = \"web\"\nreason = \"public site\"\n\
         {trust}"
    )
}
