//! The stack file of `docker/images/`: both programs from containers.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    answer::Answer,
    lab::Family,
    process::run,
    programs::{Ended, Running, finish},
    syn_watch::SynWatch,
    wait::wait_for,
};

use crate::{
    expect::{self, Protocol::Tcp},
    fleet::scanner_toml,
    images::{self, AGENT, BUILDER, SCANNER},
    lab::{NODES, Node, on_each},
    swarm::{PATIENCE, Swarm},
};

/// The scanner's user in its image.
const USER: &str = "65532";
const DATA: &str = "/var/lib/deadlight-scanner";
const CONFIG: &str = "/etc/deadlight-scanner/scanner.toml";

/// A published port and one of the node itself are closed through every node and stay closed while the agents are replaced,
/// also by such as see no process of the node, and when they are gone. sshd stays reachable in each case.
pub(crate) fn closes_and_stays_closed(swarm: &Swarm) -> Result<()> {
    let told = tell(swarm);
    let removed = remove(swarm);
    told.and(removed)
}

fn tell(swarm: &Swarm) -> Result<()> {
    let scanner = build(swarm)?;
    swarm.create_service("stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    let node = &NODES[1];
    swarm.run_process(node, "tcp", "socat TCP6-LISTEN:9011,fork,reuseaddr PIPE")?;
    swarm.on(node, "cp $(command -v socat) /tmp/sshd")?;
    swarm.run_process(node, "sshd", "/tmp/sshd TCP6-LISTEN:9022,fork,reuseaddr PIPE")?;
    expect::ingress_open(swarm, Tcp, 8080)?;
    let at = |port| node.at(Family::V4, port);
    for port in [9011, 9022] {
        expect::answers(swarm, Tcp, at(port), Answer::Data)?;
    }

    deploy(swarm, &scanner)?;
    // sshd's port stays open, and is told.
    let said = scanner.run(swarm, &["run", "--once"])?.expect_code(1)?.stdout;
    ensure!(said.contains("sshd listens on it"), "{said}");
    expect::closed_everywhere(swarm, Tcp, 8080)?;
    expect::closed(swarm, node, Tcp, 9011)?;
    expect::answers(swarm, Tcp, at(9022), Answer::Data)?;

    let targets = NODES.iter().flat_map(|node| Family::BOTH.map(|family| (family, node.at(family, 8080))));
    let watches: Vec<_> = targets
        .map(|(family, target)| SynWatch::start(swarm.inet(), family.scanner(), target))
        .collect::<Result<_>>()?;
    swarm.manage("docker service update --force --no-resolve-image --quiet deadlight_agent")?;
    swarm.update_service("stats", "--force")?;

    // As under AppArmor, which keeps containers from looking into processes of the node.
    swarm.manage("docker service update --cap-drop SYS_PTRACE --no-resolve-image --quiet deadlight_agent")?;
    swarm.run_process(node, "other", "socat TCP6-LISTEN:9012,fork,reuseaddr PIPE")?;
    swarm.update_service("stats", "--publish-add 8081:8080")?;
    expect::ingress_open(swarm, Tcp, 8081)?;
    let said = scanner.run(swarm, &["run", "--once"])?.expect_code(1)?.stdout;
    ensure!(said.contains("cannot see who listens on it, which may be sshd"), "{said}");
    expect::closed_everywhere(swarm, Tcp, 8081)?;
    for port in [9012, 9022] {
        expect::answers(swarm, Tcp, at(port), Answer::Data)?;
    }

    swarm.manage("docker stack rm deadlight")?;
    on_each(|node| wait_for_no_agent(swarm, node))?;
    swarm.update_service("stats", "--force")?;
    for watch in &watches {
        let tried = watch.observe(100)?;
        ensure!(watch.so_far().answered == 0, "{:?}, {tried:?} at the end", watch.so_far());
    }
    on_each(|node| {
        swarm.on(node, &format!("{REVERT} revert --all"))?;
        let rules = swarm.on(node, "iptables-save; ip6tables-save")?;
        ensure!(!rules.contains("DEADLIGHT"), "{rules}");
        Ok(())
    })?;
    watches.iter().try_for_each(SynWatch::see_open)?;
    expect::ingress_open(swarm, Tcp, 8080)
}

/// The agent's image by hand, as docker/README.md has it.
const REVERT: &str = "docker run --rm --network host --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_RAW \
                      --cap-add SYS_PTRACE --volume deadlight_state:/var/lib/deadlight --volume /proc:/host/proc:ro \
                      --volume /run:/host/var/run:ro deadlight-agent:story";

/// Makes both images, gives every node the agent's, and takes the scanner's apart for the machine outside, which has no engine.
fn build(swarm: &Swarm) -> Result<Scanner> {
    images::build(swarm)?;
    let shared = swarm.lab().shared();
    fs::copy(images::source("stack.yml"), shared.join("stack.yml"))?;
    fs::write(shared.join("agent.toml"), "mode = \"enforce\"\nmax_new_per_hour = 1000\n")?;
    swarm.on(
        BUILDER,
        &format!(
            "docker save --output /lab/agent.tar {AGENT} \
             && id=$(docker create {SCANNER}) && docker export --output /lab/scanner.tar $id && docker rm --volumes $id"
        ),
    )?;
    on_each(|node| swarm.on(node, "docker load --quiet --input /lab/agent.tar"))?;
    let root = shared.join("scanner");
    fs::create_dir_all(&root)?;
    run(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=security.capability", "-xf"])
        .arg(shared.join("scanner.tar"))
        .arg("-C")
        .arg(&root))?;
    let scanner = Scanner { root };
    let pki = format!("{DATA}/pki");
    let config =
        scanner_toml(&format!("[pki]\ndirectory = \"{pki}\"\n[store]\nurl = \"sqlite:{DATA}/deadlight.db\"\n"));
    fs::write(scanner.root.join(&CONFIG[1..]), config)?;
    scanner.run(swarm, &["pki", "init", "--dir", &pki])?.expect_code(0)?;
    scanner.run(swarm, &["pki", "issue-scanner", "office-a", "--dir", &pki])?.expect_code(0)?;
    Ok(scanner)
}

/// One secret with a line for each node, the stack, and a scanner that runs until all have enrolled.
fn deploy(swarm: &Swarm, scanner: &Scanner) -> Result<()> {
    let enrol = |node: &Node| Ok(scanner.run(swarm, &["enroll", node.name, "--detach"])?.expect_code(0)?.stdout);
    let lines: String = NODES.iter().map(enrol).collect::<Result<_>>()?;
    fs::write(swarm.lab().shared().join("lines"), lines)?;
    swarm.manage("docker secret create deadlight_enrol /lab/lines")?;
    let deploy =
        format!("DEADLIGHT_AGENT={AGENT} docker stack deploy --resolve-image never -c /lab/stack.yml deadlight");
    swarm.manage(&deploy)?;
    let running = Running::start(&mut scanner.command(swarm, &["run"]), "scanner", &scanner.root)?;
    wait_for("the agents to enrol", PATIENCE, || {
        let listed = scanner.run(swarm, &["pki", "list", "--dir", &format!("{DATA}/pki")]);
        match listed.and_then(|ended| ended.expect_code(0)) {
            Ok(Ended { stdout, .. }) if NODES.iter().all(|node| stdout.contains(&format!("agent/{} ", node.name))) => {
                Ok(())
            }
            other => Err(format!("{other:?}\n{}", running.log())),
        }
    })?;
    running.stop().map(drop)
}

fn wait_for_no_agent(swarm: &Swarm, node: &Node) -> Result<()> {
    wait_for("the end of the agent", PATIENCE, || {
        match swarm.on(node, "docker ps --all --quiet --filter name=deadlight_agent") {
            Ok(left) if left.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// Whatever the story has left on the nodes.
fn remove(swarm: &Swarm) -> Result<()> {
    swarm.manage("docker stack rm deadlight 2>/dev/null; docker secret rm deadlight_enrol 2>/dev/null || :")?;
    on_each(|node| {
        wait_for_no_agent(swarm, node)?;
        swarm.on(
            node,
            &format!(
                "! docker volume inspect deadlight_state >/dev/null 2>&1 || {{ {REVERT} revert --all && \
                 docker volume rm deadlight_state; }}; rm -f /tmp/sshd"
            ),
        )
    })
    .map(drop)
}

/// The root tree of a container of the scanner's image, on the machine outside.
struct Scanner {
    root: PathBuf,
}

impl Scanner {
    /// `deadlight-scanner WORDS…` as the container would run it.
    fn command(&self, swarm: &Swarm, words: &[&str]) -> Command {
        let mut command = swarm.inet().command("chroot");
        command.arg(format!("--userspec={USER}:{USER}")).arg(&self.root).arg("/usr/bin/deadlight-scanner").args(words);
        if words[0] != "pki" {
            command.args(["--config", CONFIG]);
        }
        command
    }

    fn run(&self, swarm: &Swarm, words: &[&str]) -> Result<Ended> {
        finish(&mut self.command(swarm, words)).with_context(|| format!("{words:?}"))
    }
}
