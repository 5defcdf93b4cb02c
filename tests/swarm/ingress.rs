//! Ports published through the routing mesh are open on every node, and shut on every node.

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    lab::Family,
    syn_watch::SynWatch,
};

use crate::{
    expect::{
        self,
        Protocol::{Tcp, Udp},
    },
    lab::NODES,
    swarm::Swarm,
};

const PORT: u16 = 8080;
const SITE: u16 = 80;
const UDP_PORT: u16 = 5514;

/// Also through those that have no task.
pub(crate) fn closed_through_every_node(swarm: &Swarm) -> Result<()> {
    publish(swarm)?;
    swarm.fleet.close(swarm.lab())?;
    expect::closed_everywhere(swarm, Tcp, PORT)?;
    expect::closed_everywhere(swarm, Udp, UDP_PORT)?;
    expect::ingress_open(swarm, Tcp, SITE)?;
    expect::cause(swarm, &NODES[0], "8080/tcp", "swarm_ingress: service stats", "").map(drop)
}

/// dockerd puts its wide ACCEPT back each time.
pub(crate) fn stays_closed_whatever_docker_does(swarm: &Swarm) -> Result<()> {
    publish(swarm)?;
    swarm.fleet.close(swarm.lab())?;
    let watch = |port: u16| -> Result<Vec<SynWatch>> {
        let targets = NODES.iter().flat_map(|node| Family::BOTH.map(|family| (family, node.at(family, port))));
        targets.map(|(family, target)| SynWatch::start(swarm.inet(), family.scanner(), target)).collect()
    };
    watch(SITE)?.iter().try_for_each(SynWatch::see_open)?;
    let watches = watch(PORT)?;
    swarm.update_service("stats", "--force")?;
    swarm.update_service("stats", "--publish-add 8081:8080")?;
    expect::ingress_open(swarm, Tcp, 8081)?;
    swarm.remove_service("stats")?;
    swarm.create_service("stats", "--publish 8080:8080 --publish 8081:8080", "httpd -f -h /www -p 8080")?;
    expect::ingress_open(swarm, Tcp, 8081)?;
    for node in &NODES {
        swarm.restart_engine(node)?;
        expect::ingress_open(swarm, Tcp, 8081)?;
    }
    for (watch, node) in watches.iter().zip(NODES.iter().flat_map(|node| [node, node])) {
        let tried = watch.observe(100)?;
        ensure!(watch.so_far().answered == 0, "node {}: {:?}, {tried:?} at the end", node.name, watch.so_far());
    }
    Ok(())
}

/// The second node forwarded before dockerd started: there is no policy to fall through to.
pub(crate) fn closed_where_forward_accepts(swarm: &Swarm) -> Result<()> {
    let node = &NODES[1];
    let rules = swarm.on(node, "iptables-save -t filter")?;
    ensure!(rules.contains(":FORWARD ACCEPT"), "{rules}");
    swarm.create_service("stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    expect::ingress_open(swarm, Tcp, PORT)?;
    swarm.fleet.close(swarm.lab())?;
    expect::closed(swarm, node, Tcp, PORT)
}

/// A rule whose service is gone, as old engines leave them behind, leads on to whatever has its place.
pub(crate) fn a_stale_rule_is_closed(swarm: &Swarm) -> Result<()> {
    let node = &NODES[0];
    swarm.create_service("stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    expect::ingress_open(swarm, Tcp, PORT)?;
    let dnat = swarm.on(node, "iptables-save -t nat | grep 'A DOCKER-INGRESS.*--dport 8080'")?;
    let stale = dnat.trim().replace("-A DOCKER-INGRESS", "").replace("--dport 8080", "--dport 8099");
    swarm.on(node, &format!("iptables -t nat -I DOCKER-INGRESS {stale}"))?;
    let outcome = (|| {
        expect::answers(swarm, Tcp, node.at(Family::V4, 8099), Answer::Data)?;
        expect::cause(swarm, node, "8099/tcp", "stale_ingress", "")?;
        swarm.fleet.close(swarm.lab())?;
        ensure!(tcp_answer(swarm.inet(), node.at(Family::V4, 8099))? == Answer::Silent, "it is open");
        Ok(())
    })();
    swarm.on(node, &format!("iptables -t nat -D DOCKER-INGRESS {stale}"))?;
    outcome
}

fn publish(swarm: &Swarm) -> Result<()> {
    swarm.create_service("stats", "--publish 8080:8080", "httpd -f -h /www -p 8080")?;
    swarm.create_service("site", "--publish 80:80", "httpd -f -h /www -p 80")?;
    swarm.create_service("syslog", "--publish 5514:5514/udp", "socat UDP-LISTEN:5514,fork PIPE")?;
    expect::ingress_open(swarm, Tcp, PORT)?;
    expect::ingress_open(swarm, Tcp, SITE)?;
    expect::ingress_open(swarm, Udp, UDP_PORT)
}
