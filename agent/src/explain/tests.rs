use super::*;
use crate::firewall::{Desired, iptables, nftables};
use crate::inventory::{Process, Service, Task};
use deadlight_shared::wire::Explanation;

const NODE: &str = "198.51.100.11";
const NODE6: &str = "2001:db8:51::11";

struct World {
    facts: Facts,
    rules: DockerRules,
}

impl World {
    fn new() -> Self {
        let facts = Facts {
            flows: Ok(Vec::new()),
            listeners: Ok(Vec::new()),
            docker: Ok(DockerFacts { services: Some(Vec::new()), ..DockerFacts::default() }),
            addresses: [NODE, NODE6, "172.18.0.1"].map(|address| address.parse().unwrap()).into(),
        };
        Self { facts, rules: DockerRules::default() }
    }

    fn flow(mut self, to: &str, answers: &str) -> Self {
        let flow = Flow {
            protocol: Protocol::Tcp,
            source: "198.51.100.1:40000".parse().unwrap(),
            destination: to.parse().unwrap(),
            answers: answers.parse().unwrap(),
        };
        self.facts.flows.as_mut().unwrap().push(flow);
        self
    }

    fn dnat(mut self, chain: &'static str, port: &str, to: &str) -> Self {
        let to: std::net::SocketAddr = to.parse().unwrap();
        let port = port.parse().unwrap();
        self.rules.dnat.push(Dnat { chain, port, on: None, to: to.ip(), to_port: to.port() });
        self
    }

    fn listener(mut self, address: &str, port: &str, program: &str, arguments: &[&str]) -> Self {
        let process = Process {
            pid: 7,
            program: program.to_owned(),
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            unit: Some(format!("{program}.service")),
            container: None,
        };
        let listener = Listener {
            port: port.parse().unwrap(),
            address: address.parse().unwrap(),
            process: Some(process),
            is_hidden: false,
        };
        self.facts.listeners.as_mut().unwrap().push(listener);
        self
    }

    fn service(mut self, name: &str, port: &str) -> Self {
        let service = Service {
            name: name.to_owned(),
            image: Some("lab:1".to_owned()),
            ingress: vec![port.parse().unwrap()],
            ..Service::default()
        };
        self.facts.docker.as_mut().unwrap().services.as_mut().unwrap().push(service);
        self
    }

    fn container(mut self, name: &str, address: &str) -> Self {
        let container =
            Container { name: name.to_owned(), addresses: vec![address.parse().unwrap()], ..Container::default() };
        self.facts.docker.as_mut().unwrap().containers.push(container);
        self
    }

    fn lines(mut self, lines: &[&str]) -> Self {
        self.rules.lines = lines.iter().map(|line| (*line).to_owned()).collect();
        self
    }

    /// On a node in observe mode; 9000/tcp has an entry in an allowlist.
    fn text(&self, port: &str, address: Option<&str>) -> String {
        let port: Port = port.parse().unwrap();
        let question = Question { port, address: address.map(|address| address.parse().unwrap()), from: None };
        let subnets = ["172.17.0.0/16", "172.18.0.0/16"].map(|net| net.parse().unwrap()).into();
        let desired = Desired { docker_subnets: subnets, ..Desired::default() };
        let rules = iptables::lines_for(port, &desired, &self.rules);
        deadlight_shared::explained::text(&Explanation {
            schema: Explanation::SCHEMA.to_owned(),
            node: "n1".parse().unwrap(),
            port,
            cause: cause(question, &self.facts, &self.rules),
            path: path(port, &self.rules),
            allowed_by: if port.number.get() == 9000 { vec!["allowed by scanner office-a".to_owned()] } else { vec![] },
            closed: false,
            refused: (port.number.get() == 2377)
                .then(|| format!("{port} is protected: the swarm needs it between its nodes")),
            rules: nftables::lines_for(port).into_iter().chain(rules).collect(),
        })
    }

    fn ask(&self, port: &str, address: Option<&str>) -> String {
        let address = address.map(|address| address.parse().unwrap());
        let question = Question { port: port.parse().unwrap(), address, from: None };
        cause(question, &self.facts, &self.rules).to_string()
    }
}

fn ingress() -> World {
    World::new().dnat("DOCKER-INGRESS", "8080/tcp", "172.18.0.2:8080").service("stats", "8080/tcp")
}

#[test]
fn swarm_ingress_names_the_service() {
    let world = ingress().flow("198.51.100.11:8080", "172.18.0.2:8080");
    assert_eq!(world.ask("8080/tcp", Some(NODE)), "swarm_ingress: service stats, image lab:1");
    assert_eq!(ingress().ask("8080/tcp", Some(NODE)), "swarm_ingress: service stats, image lab:1", "without a flow");
    assert_eq!(ingress().ask("8080/tcp", None), "swarm_ingress: service stats, image lab:1");
}

#[test]
fn the_same_port_over_ipv6_is_dockerds_placeholder() {
    let world = ingress().listener("::", "8080/tcp", "dockerd", &[]);
    assert_eq!(
        world.ask("8080/tcp", Some(NODE6)),
        "dockerd_placeholder: service stats, image lab:1, program dockerd, pid 7, unit dockerd.service"
    );
}

#[test]
fn an_ingress_rule_without_a_service_is_stale() {
    let world = World::new().dnat("DOCKER-INGRESS", "8080/tcp", "172.18.0.2:8080");
    assert_eq!(world.ask("8080/tcp", Some(NODE)), "stale_ingress");
}

#[test]
fn a_worker_knows_the_path_but_not_the_name() {
    let mut world = ingress();
    world.facts.docker.as_mut().unwrap().services = None;
    assert_eq!(world.ask("8080/tcp", Some(NODE)), "swarm_ingress");
}

#[test]
fn docker_run_names_the_container() {
    let world = World::new()
        .dnat("DOCKER", "9000/tcp", "172.17.0.2:80")
        .container("web", "172.17.0.2")
        .flow("198.51.100.11:9000", "172.17.0.2:80");
    assert_eq!(world.ask("9000/tcp", Some(NODE)), "published_container: container web");
}

#[test]
fn docker_proxy_names_the_container_behind_it() {
    let arguments = ["docker-proxy", "-proto", "tcp", "-host-port", "9000", "-container-ip", "172.17.0.2"];
    let world = World::new().listener("::", "9000/tcp", "docker-proxy", &arguments).container("web", "172.17.0.2");
    assert!(world.ask("9000/tcp", Some(NODE6)).starts_with("docker_proxy: container web"));
}

#[test]
fn a_plain_process_names_its_unit() {
    let world = World::new()
        .listener("0.0.0.0", "9100/tcp", "node_exporter", &[])
        .flow("198.51.100.11:9100", "198.51.100.11:9100");
    assert_eq!(
        world.ask("9100/tcp", Some(NODE)),
        "host_process: program node_exporter, pid 7, unit node_exporter.service"
    );
    let loopback = World::new().listener("127.0.0.1", "9100/tcp", "node_exporter", &[]);
    assert_eq!(loopback.ask("9100/tcp", Some(NODE)), "unknown");
}

#[test]
fn the_swarms_and_dockers_own_ports() {
    let world = World::new().listener("::", "2377/tcp", "dockerd", &[]).listener("::", "2375/tcp", "dockerd", &[]);
    assert!(world.ask("2377/tcp", Some(NODE)).starts_with("swarm_control"));
    assert!(world.ask("2375/tcp", Some(NODE)).starts_with("docker_api"));
    assert_eq!(World::new().ask("4789/udp", Some(NODE)), "swarm_control");
}

#[test]
fn a_container_reached_by_its_own_address_is_direct_routing() {
    let world = World::new().container("db", "172.18.0.5").flow("172.18.0.5:8080", "172.18.0.5:8080");
    assert_eq!(world.ask("8080/tcp", None), "direct_route: container db");
}

#[test]
fn the_scanners_own_probe_weighs_more_than_another_client() {
    let mut world =
        ingress().flow("198.51.100.11:8080", "172.18.0.2:8080").flow("198.51.100.11:8080", "198.51.100.11:8080");
    world.facts.flows.as_mut().unwrap()[1].source = "203.0.113.9:5000".parse().unwrap();
    let from = |from: &str| {
        let port = "8080/tcp".parse().unwrap();
        let question = Question { port, address: NODE.parse().ok(), from: from.parse().ok() };
        cause(question, &world.facts, &world.rules).evidence.swap_remove(0)
    };
    assert_eq!(from("198.51.100.1"), "the scanner's probe from 198.51.100.1:40000 was answered by 172.18.0.2:8080");
}

#[test]
fn flows_from_the_node_itself_explain_nothing() {
    let mut world = World::new().flow("198.51.100.11:8080", "172.18.0.2:8080");
    world.facts.flows.as_mut().unwrap()[0].source = "172.18.0.1:5000".parse().unwrap();
    assert_eq!(world.ask("8080/tcp", Some(NODE)), "unknown");
}

#[test]
fn what_could_not_be_read_is_said() {
    let mut world = World::new();
    world.facts.docker = Err("Docker gave no answer".to_owned());
    let question = Question { port: "8080/tcp".parse().unwrap(), address: None, from: None };
    let cause = cause(question, &world.facts, &world.rules);
    assert_eq!(cause.kind, CauseKind::Unknown);
    assert_eq!(cause.evidence, ["not seen: Docker gave no answer"]);
}

/// What an operator reads for each cause; the golden text is the contract.
#[test]
fn each_cause_as_an_operator_reads_it() {
    let proxy = ["docker-proxy", "-proto", "tcp", "-host-port", "9000", "-container-ip", "172.17.0.2"];
    let mut host = World::new().container("web", "172.17.0.2").listener("::", "9010/tcp", "socat", &[]);
    host.facts.docker.as_mut().unwrap().containers[0].id = "0123".to_owned();
    host.facts.listeners.as_mut().unwrap()[0].process.as_mut().unwrap().container = Some("0123".to_owned());
    let mut mesh = ingress().lines(INGRESS);
    mesh.facts.docker.as_mut().unwrap().services.as_mut().unwrap()[0].tasks =
        vec![Task { slot: "1".to_owned(), node: "n2".to_owned(), is_here: false }];
    let run = World::new().dnat("DOCKER", "9000/tcp", "172.17.0.2:80").container("web", "172.17.0.2").lines(RUN);
    let mut local = World::new().dnat("DOCKER", "9002/tcp", "172.18.0.4:80").container("local.1.x7", "172.18.0.4");
    let task = &mut local.facts.docker.as_mut().unwrap().containers[0];
    (task.service, task.task) = (Some("local".to_owned()), Some("local.1".to_owned()));
    let texts = [
        ("swarm ingress, open through another node's task as well", mesh.text("8080/tcp", Some(NODE))),
        ("the same over IPv6", ingress().listener("::", "8080/tcp", "dockerd", &[]).text("8080/tcp", Some(NODE6))),
        ("docker run -p", run.text("9000/tcp", Some(NODE))),
        ("mode=host", local.text("9002/tcp", Some(NODE))),
        (
            "docker-proxy",
            World::new()
                .listener("::", "9000/tcp", "docker-proxy", &proxy)
                .container("web", "172.17.0.2")
                .text("9000/tcp", Some(NODE6)),
        ),
        ("a container on the host network", host.text("9010/tcp", Some(NODE))),
        (
            "a plain process",
            World::new().listener("0.0.0.0", "9100/tcp", "node_exporter", &[]).text("9100/tcp", Some(NODE)),
        ),
        ("the swarm's own port", World::new().listener("::", "2377/tcp", "dockerd", &[]).text("2377/tcp", Some(NODE))),
        ("the Docker API", World::new().listener("::", "2375/tcp", "dockerd", &[]).text("2375/tcp", Some(NODE))),
        (
            "a container reached by its own address",
            World::new()
                .container("db", "172.18.0.5")
                .flow("172.18.0.5:8080", "172.18.0.5:8080")
                .text("8080/tcp", None),
        ),
        (
            "a stale rule",
            World::new()
                .dnat("DOCKER-INGRESS", "8080/tcp", "172.18.0.2:8080")
                .lines(INGRESS)
                .text("8080/tcp", Some(NODE)),
        ),
        ("nobody", World::new().text("8080/tcp", Some(NODE))),
    ];
    let all: String = texts.iter().map(|(title, text)| format!("== {title}\n{text}\n")).collect();
    assert_eq!(all, include_str!("golden/causes.txt"));
}

const INGRESS: &[&str] = &[
    "iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS",
    "iptables -t nat -A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:8080",
    "iptables -t filter -A FORWARD -j DOCKER-INGRESS",
    "iptables -t filter -A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j ACCEPT",
];
const RUN: &[&str] = &[
    "iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "iptables -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 172.17.0.2:80",
    "iptables -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 90001 -j DNAT --to-destination 172.17.0.3:80",
    "iptables -t filter -A FORWARD -o docker0 -j DOCKER",
    "iptables -t filter -A FORWARD -j DOCKER-USER",
    "iptables -t filter -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
    "iptables -t filter -A DOCKER-USER -j RETURN",
];
