//! The page "First steps", line by line as it is printed, with the packages.
//!
//! An emulated node has no systemd: `systemctl.sh` plays its part. What the units do under a real one is told in
//! `../stories/packages.rs` and `units.rs`.

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{answer::Answer, lab::Family, syn_watch::SynWatch, wait::wait_for};

use crate::{
    expect::{self, Protocol::Tcp},
    lab::NODES,
    newcomer::{Machine, Outside, file, printed},
    swarm::{PATIENCE, Swarm},
};

const PORT: u16 = 8080;
const SITE: u16 = 80;
const ONCE: &str = "deadlight-scanner run --once --config scanner.toml";

pub(crate) fn as_printed(swarm: &Swarm) -> Result<()> {
    let outside = Outside::new(swarm)?;
    let nodes = [Machine::new(swarm, &NODES[0])?, Machine::new(swarm, &NODES[1])?];
    swarm.create_service("stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    swarm.create_service("site", "--publish 80:80", "httpd -f -h /www -p 80")?;
    expect::ingress_open(swarm, Tcp, PORT)?;
    expect::ingress_open(swarm, Tcp, SITE)?;
    look(&outside)?;
    enrol(&outside, &nodes)?;
    observe(&outside)?;
    expect::ingress_open(swarm, Tcp, PORT)?;
    enforce(swarm, &outside, &nodes)?;
    allow(swarm, &outside, &nodes)?;
    let watch = SynWatch::start(swarm.inet(), Family::V4.scanner(), nodes[1].node.at(Family::V4, PORT))?;
    leave_it_running(&outside, &nodes)?;
    let tried = watch.observe(100)?;
    ensure!(watch.so_far().answered == 0, "{:?}, {tried:?} at the end", watch.so_far());
    remove(&outside, &nodes)?;
    watch.see_open()?;
    expect::ingress_open(swarm, Tcp, PORT)
}

fn look(outside: &Outside<'_>) -> Result<()> {
    let seen = outside.run("deadlight-scanner scan 198.51.100.11 198.51.100.12 --allow 22/tcp,80/tcp,443/tcp", 1)?;
    says(&seen, "8080")
}

fn enrol(outside: &Outside<'_>, nodes: &[Machine<'_>; 2]) -> Result<()> {
    outside.run("deadlight-scanner pki init --dir pki", 0)?;
    outside.run("deadlight-scanner pki issue-scanner office-a --dir pki", 0)?;
    outside.run("deadlight-scanner --print-config > scanner.toml", 0)?;
    outside.write("scanner.toml")?;
    outside.run("deadlight-scanner check-config --config scanner.toml", 0)?;
    for (node, name) in nodes.iter().zip(["n1", "n2"]) {
        node.install()?;
        let (waiting, line) = outside.invite(name)?;
        node.shell(&printed("deadlight-agent enroll LINE")?.replace("LINE", &line))?;
        waiting.wait(PATIENCE)?;
        node.run(
            "systemctl enable --now deadlight-docker.socket deadlight-listeners.socket deadlight-restore.service \
             deadlight-agent.service",
        )?;
    }
    let list = outside.run("deadlight-scanner pki list --dir pki", 0)?;
    says(&list, "n1").and(says(&list, "n2"))
}

fn observe(outside: &Outside<'_>) -> Result<()> {
    says(&outside.run(ONCE, 1)?, "observed")?;
    says(&outside.run("deadlight-scanner findings --config scanner.toml", 1)?, "8080/tcp")?;
    says(&outside.run("deadlight-scanner explain n1:8080/tcp --config scanner.toml", 0)?, "swarm_ingress")
}

fn enforce(swarm: &Swarm, outside: &Outside<'_>, nodes: &[Machine<'_>; 2]) -> Result<()> {
    let printed_file = file("agent.toml")?;
    let scanners = printed_file.lines().find(|line| line.starts_with("scanners = ")).context("no scanners")?;
    // Where this scanner may come from.
    let own = "scanners = [\"198.51.100.1\", \"198.51.100.2\", \"2001:db8:51::1\", \"2001:db8:51::2\"]";
    let config = printed_file.replace(scanners, own);
    for node in nodes {
        node.shell(&format!("cat >/etc/deadlight/agent.toml <<END\n{config}END"))?;
        node.run("deadlight-agent check-config")?;
        node.run("systemctl restart deadlight-agent")?;
        // An emulated node may give reason to doubt.
        let doctor = node.ask(printed("deadlight-agent doctor")?)?;
        ensure!(doctor.code()? < 2, "{doctor:?}");
    }
    says(&outside.run(ONCE, 0)?, "PROOF")?;
    nodes.iter().try_for_each(|node| expect::closed(swarm, node.node, Tcp, PORT))?;
    expect::answers(swarm, Tcp, nodes[0].node.at(Family::V4, SITE), Answer::Data)
}

fn allow(swarm: &Swarm, outside: &Outside<'_>, nodes: &[Machine<'_>; 2]) -> Result<()> {
    let line = "deadlight-scanner allow 8080/tcp --node n1 --owner infra --reason migration --expires 2030-01-31 \
                --config scanner.toml";
    says(&outside.run(line, 0)?, "[[allow]]")?;
    outside.shell(&format!("{line} --write"), 0)?;
    outside.run(ONCE, 0)?;
    expect::answers(swarm, Tcp, nodes[0].node.at(Family::V4, PORT), Answer::Data)?;
    expect::closed(swarm, nodes[1].node, Tcp, PORT)
}

/// With an upgrade of the nodes.
fn leave_it_running(outside: &Outside<'_>, nodes: &[Machine<'_>; 2]) -> Result<()> {
    let running = outside.start("deadlight-scanner run --config scanner.toml", "scanner")?;
    let patiently = |what: &str, ask: &dyn Fn() -> Result<String>| {
        wait_for(what, PATIENCE, || ask().map_err(|error| format!("{error:#}\n{}", running.log())))
    };
    let page = patiently("the page", &|| outside.shell("curl -fsS --noproxy '*' http://127.0.0.1:7480", 0))?;
    says(&page, "8080")?;
    patiently("a sweep", &|| outside.run("deadlight-scanner status --config scanner.toml", 0))?;
    says(&outside.run("deadlight-scanner history --config scanner.toml", 0)?, "8080/tcp")?;

    outside.run("deadlight-scanner backup before-upgrade.db --config scanner.toml", 0)?;
    for node in nodes {
        let version = "dpkg-query --show --showformat=\"\\${Version}\" deadlight-agent";
        let before = node.shell(version)?;
        node.upgrade()?;
        let after = node.shell(version)?;
        ensure!(before != after, "{before} is {after}");
        node.run("systemctl restart deadlight-agent")?;
        node.run("deadlight-agent status")?;
    }
    running.stop().map(drop)
}

fn remove(outside: &Outside<'_>, nodes: &[Machine<'_>; 2]) -> Result<()> {
    for node in nodes {
        node.run(
            "systemctl disable --now deadlight-agent.service deadlight-restore.service deadlight-docker.socket \
             deadlight-listeners.socket",
        )?;
        node.run("deadlight-agent revert --all")?;
        node.run("rm -r /var/lib/deadlight /etc/deadlight")?;
        let rules = node.shell("iptables-save; ip6tables-save")?.to_lowercase();
        ensure!(!rules.contains("deadlight"), "{rules}");
    }
    outside.run("deadlight-scanner pki revoke n1 --dir pki", 0)?;
    outside.run("deadlight-scanner pki revoke n2 --dir pki", 0).map(drop)
}

fn says(text: &str, word: &str) -> Result<()> {
    ensure!(text.contains(word), "no {word:?} in {text}");
    Ok(())
}
