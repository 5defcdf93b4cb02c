//! What a stolen scanner's key can do: close ports within the node's own budget, and nothing else.

#![expect(clippy::print_stdout, reason = "what was measured is part of the story")]

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::resume_unwind,
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deadlight_shared::{OperatorSecret, PermitEntry, SignedPermit, wire::Order};
use deadlight_tests::{
    answer::{Answer, tcp_answer_from, udp_answer},
    deployment::{AGENT_PORT, Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    hostile,
    lab::{
        Family::{self, V4, V6},
        INGRESS, Lab, RUN,
    },
    order::{self, PATH, allowing, order, permit, send},
    process::run,
    server::Server,
    test_ca::Validity,
};
use serde_json::Value;

use crate::expect;

const SCANNER: &str = "spiffe://deadlight/scanner/office-a";
const AGENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11)), AGENT_PORT);
/// The swarm ingress port over both families.
const INGRESS_PORT: [(Family, &str, u16); 2] = [(V4, "tcp", INGRESS), (V6, "tcp", INGRESS)];
const EVERYTHING: &str = "1-65535/tcp,1-65535/udp";
/// How soon a port is open again, from the order on.
const REOPENED: Duration = Duration::from_secs(5);

#[test]
fn a_stolen_key_opens_nothing_that_an_order_closed() -> Result<()> {
    let (lab, deployment, operator) = world("")?;
    let agent = deployment.start_agent(&lab.wire)?;
    order::enforce(&deployment, &lab.wire, 1, &INGRESS_PORT)?;
    let withdrawn = permit(&operator, 7, "80,8080/tcp")?;
    let first = allowing(2, &[], "8080/tcp", Some(&withdrawn));
    ensure!(send(&deployment, &lab.wire, &first)?.status == 200, "the operator opens it once");
    expect::tcp(lab.inet(), V4.node(INGRESS), expect::behind_the_mesh(V4))?;
    let narrowed = allowing(3, &INGRESS_PORT, "80/tcp", Some(&permit(&operator, 8, "80/tcp")?));
    ensure!(send(&deployment, &lab.wire, &narrowed)?.status == 200, "and withdraws it");
    expect::closed(&lab.wire, &[(V4, INGRESS), (V6, INGRESS)])?;

    let closed = rules(&lab)?;
    for (sequence, attack) in (4..).zip(attacks(&operator, &withdrawn)?) {
        let (what, permit) = attack;
        let answer = send(&deployment, &lab.wire, &allowing(sequence, &[], EVERYTHING, permit.as_ref()))?;
        ensure!(rules(&lab)? == closed, "{what}: the rules are other ones: {answer:?}");
        ensure!(answer.status != 200 || answer.text.contains("not signed by the operator"), "{what}: {answer:?}");
    }
    agent.kill()?;
    let agent = deployment.start_agent(&lab.wire)?;
    send(&deployment, &lab.wire, &allowing(100, &[], EVERYTHING, Some(&withdrawn)))?;
    ensure!(rules(&lab)? == closed, "another agent took the older permit: {}", agent.log());
    expect::closed(&lab.wire, &[(V4, INGRESS), (V6, INGRESS)])?;

    let again = permit(&operator, 41, "80,8080/tcp")?;
    opens(&lab, &deployment, &allowing(101, &[], "80,8080/tcp", Some(&again)))
}

#[test]
fn a_stolen_key_opens_nothing_that_the_posture_closes() -> Result<()> {
    let (lab, deployment, operator) = world("posture = \"allowlist\"\nallow = [\"80/tcp\"]")?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let ports = [(V4, INGRESS), (V6, INGRESS), (V4, RUN), (V6, RUN)];
    expect::closed(&lab.wire, &ports)?;
    let closed = rules(&lab)?;
    for (sequence, (what, permit)) in
        (1..).zip(attacks(&operator, &permit(&OperatorSecret::generate()?, 7, "8080/tcp")?)?)
    {
        let answer = send(&deployment, &lab.wire, &allowing(sequence, &[], EVERYTHING, permit.as_ref()))?;
        ensure!(rules(&lab)? == closed, "{what}: the rules are other ones: {answer:?}");
    }
    expect::closed(&lab.wire, &ports)?;
    opens(&lab, &deployment, &allowing(100, &[], "8080/tcp", Some(&permit(&operator, 41, "8080/tcp")?)))
}

#[test]
fn what_the_operator_signs_goes_with_the_next_order() -> Result<()> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let settings = Settings { sweep: "80,7443,8080", families: &[V4], ..Settings::default() };
    let deployment = Deployment::unenrolled(&settings)?;
    deployment.make_operator(&deployment.path("pki"))?;
    deployment.enroll(&lab.wire)?;
    let _agent = deployment.start_agent(&lab.wire)?;
    deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    expect::closed(&lab.wire, &[(V4, INGRESS)])?;

    deployment.allow("80,7443,8080/tcp")?;
    let unsigned = deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    ensure!(unsigned.stdout.contains("not signed by the operator"), "{unsigned:?}");
    expect::closed(&lab.wire, &[(V4, INGRESS)])?;

    let said = deployment.sign_allowlist()?;
    ensure!(said.starts_with("+ n1: 80/tcp,7443/tcp,8080/tcp\n"), "{said}");
    let signed = deployment.scanner(&lab.wire, &["run", "--once"])?.expect_code(0)?;
    ensure!(!signed.stdout.contains("not signed"), "{signed:?}");
    expect::tcp(lab.inet(), V4.node(INGRESS), Answer::Data)
}

/// Orders of every port, TCP and UDP, by one address after the other; DEADLIGHT_ATTACKS says how often.
#[test]
fn a_stolen_key_closes_no_protected_port_and_no_more_than_the_budget() -> Result<()> {
    const BUDGET: usize = 20;
    const TCP: [u16; 5] = [22, 2377, 7946, AGENT_PORT, 9443];
    const UDP: [u16; 2] = [4789, 7946];
    let (lab, deployment, _) = world(&format!("protected = [\"9443/tcp\"]\nmax_new_per_hour = {BUDGET}"))?;
    let mut servers = Vec::new();
    for family in Family::BOTH {
        for port in TCP.into_iter().filter(|port| *port != AGENT_PORT) {
            servers.push(Server::tcp(lab.node(), family.any(port))?);
        }
        for port in UDP {
            servers.push(Server::udp(lab.node(), family.any(port))?);
        }
    }
    let started = Instant::now();
    let reachable = || -> Result<()> {
        for family in Family::BOTH {
            for port in TCP {
                let (to, from) = (family.node(port), SocketAddr::new(family.stranger(), 0));
                let answer = tcp_answer_from(lab.inet(), from, to)?;
                ensure!(matches!(answer, Answer::Data | Answer::OpenNoData), "{to}/tcp: {answer:?}");
            }
            for port in UDP {
                let answer = udp_answer(lab.inet(), family.node(port))?;
                ensure!(answer == Answer::Data, "{}/udp: {answer:?}", family.node(port));
            }
        }
        Ok(())
    };
    let ports = every_port(attacks_wanted(1));
    let orders: Vec<_> = (1..).zip(ports.chunks(1_000)).collect();
    let mut looks = 0;
    for orders in orders.chunks(orders.len().div_ceil(2)) {
        let agent = deployment.start_agent(&lab.wire)?;
        looks += thread::scope(|scope| {
            // A look begins with each order.
            let (begins, begun) = sync_channel(0);
            let watcher = scope.spawn(|| begun.into_iter().try_fold(0, |looks, ()| reachable().map(|()| looks + 1)));
            for (sequence, ports) in orders {
                if begins.send(()).is_err() {
                    break;
                }
                let response = send(&deployment, &lab.wire, &order(*sequence, ports))?;
                ensure!(response.status == 200, "{response:?}");
            }
            drop(begins);
            watcher.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        reachable()?;
        agent.kill()?;
    }
    let closed = memory(&deployment)?["closures"].as_array().context("no closures")?.len();
    ensure!(closed == BUDGET, "{closed} ports are closed");
    println!(
        "{} orders with {} findings in {:.1?}: {closed} ports closed of a budget of {BUDGET}; \
         {looks} looks at every protected port meanwhile, all answered",
        orders.len(),
        ports.len(),
        started.elapsed()
    );
    Ok(())
}

/// Captured orders again: as they were, changed, by others' certificates, and the very bytes of their connections.
#[test]
fn captured_orders_do_nothing() -> Result<()> {
    let (lab, deployment, operator) = world("max_new_per_hour = 1000")?;
    let mut agent = deployment.start_agent(&lab.wire)?;
    let captured = Captured::by_sending(&lab, &deployment, &operator)?;
    let mut sum = Sum::default();
    for moment in ["at once", "after a restart", "after another", "after revert --all"] {
        match moment {
            "at once" => {}
            "after revert --all" => drop(deployment.agent(&lab.wire, &["revert", "--all"])?.expect_code(0)?),
            _ => {
                agent.kill()?;
                agent = deployment.start_agent(&lab.wire)?;
            }
        }
        let before = (rules(&lab)?, memory(&deployment)?);
        captured.attack(&lab, &deployment, attacks_wanted(2_000) / 4, &mut sum)?;
        let after = (rules(&lab)?, memory(&deployment)?);
        ensure!(before == after, "something was done {moment}: {}", agent.log());
    }
    println!("{sum:?}: 0 acts");
    Ok(())
}

/// What was tried.
#[derive(Debug, Default)]
struct Sum {
    replays: u64,
    mutations: u64,
    by_other_certificates: u64,
    connections_replayed: u64,
}

struct Captured {
    orders: Vec<String>,
    connections: Vec<Vec<u8>>,
    /// The newest one's.
    sequence: u64,
}

impl Captured {
    /// Orders that close and open again, as a scanner sent them.
    fn by_sending(lab: &Lab, deployment: &Deployment, operator: &OperatorSecret) -> Result<Self> {
        let (mut orders, mut connections, sequence) = (Vec::new(), Vec::new(), 20);
        for number in 1..=sequence {
            let closing = [INGRESS_PORT[0], INGRESS_PORT[1], (V4, "tcp", RUN), (V4, "udp", 5514)];
            let (ports, allow) = if number % 2 == 0 { (&closing[..], "80/tcp") } else { (&[][..], "80,8080/tcp") };
            let permit = permit(operator, number, allow)?;
            let body = allowing(number, ports, allow, Some(&permit)).to_string();
            let scanner = deployment.identity(SCANNER, Validity::Current)?;
            let (response, connection) = hostile::recorded(lab.inet(), AGENT, Some(scanner), "PUT", PATH, &body)?;
            ensure!(response.status == 200 && !response.text.contains("not signed"), "{response:?}");
            orders.push(body);
            connections.push(connection);
        }
        Ok(Self { orders, connections, sequence })
    }

    fn attack(&self, lab: &Lab, deployment: &Deployment, count: u64, sum: &mut Sum) -> Result<()> {
        let mut rng = fastrand::Rng::with_seed(count + sum.replays);
        let newest = format!("\"sequence\":{}", self.sequence);
        let put = |uri: &str, body: &str| {
            let identity = deployment.identity(uri, Validity::Current)?;
            hostile::request(lab.inet(), AGENT, Some(identity), "PUT", PATH, body)
        };
        for _ in 0..count {
            let index = rng.usize(..self.orders.len());
            let order = &self.orders[index];
            match rng.u8(..10) {
                0..4 => {
                    let response = put(SCANNER, order)?;
                    ensure!(response.status == 200 && response.text.contains(&newest), "{order}: {response:?}");
                    sum.replays += 1;
                }
                4..8 => {
                    let Some(mutated) = self.mutated(order, &mut rng) else { continue };
                    let response = put(SCANNER, &mutated)?;
                    let refused = (400..500).contains(&response.status);
                    ensure!(refused || response.text.contains(&newest), "{mutated}: {response:?}");
                    sum.mutations += 1;
                }
                8 => {
                    let uri = ["spiffe://deadlight/scanner/office-b", "spiffe://deadlight/agent/n1"][rng.usize(..2)];
                    let response = put(uri, order)?;
                    ensure!(response.status == 403, "{uri}: {response:?}");
                    sum.by_other_certificates += 1;
                }
                _ => {
                    let mut bytes = self.connections[index].clone();
                    if rng.bool() {
                        let at = rng.usize(..bytes.len());
                        bytes[at] ^= 1 << rng.u8(..8);
                    }
                    let answer = hostile::replay(lab.inet(), AGENT, &bytes)?;
                    ensure!(!answer.windows(5).any(|bytes| bytes == b"HTTP/"), "a replayed connection was answered");
                    sum.connections_replayed += 1;
                }
            }
        }
        Ok(())
    }

    /// `order` with some letters changed, cut out or put in. `None` where that made a newer order of this scanner:
    /// whoever has its key may send one, and the other stories say what that can do.
    fn mutated(&self, order: &str, rng: &mut fastrand::Rng) -> Option<String> {
        let mut bytes = order.as_bytes().to_vec();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..bytes.len());
            let end = bytes.len().min(at + rng.usize(..3));
            let put: Vec<u8> = (0..rng.usize(..3)).map(|_| rng.u8(b' '..b'~')).collect();
            bytes.splice(at..end, put);
        }
        let mutated = String::from_utf8(bytes).ok()?;
        let is_newer = |order: Order| (order.epoch, order.sequence) > (1, self.sequence);
        (!serde_json::from_str(&mutated).is_ok_and(is_newer)).then_some(mutated)
    }
}

/// A node whose agent knows an operator; `lines` are put into its configuration.
fn world(lines: &str) -> Result<(Lab, Deployment, OperatorSecret)> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let deployment = Deployment::new(&Settings::default())?;
    deployment.know_operator()?;
    deployment.prepend(lines)?;
    let operator = OperatorSecret::from_pem(&fs::read(deployment.path("operator.key"))?)?;
    Ok((lab, deployment, operator))
}

/// What a thief can show instead of the operator's permit for everything.
fn attacks(operator: &OperatorSecret, withdrawn: &SignedPermit) -> Result<Vec<(&'static str, Option<SignedPermit>)>> {
    let good = permit(operator, 40, "80/tcp")?;
    let entry = |ports: &str, expires| -> Result<_> { Ok(PermitEntry { ports: ports.parse()?, expires }) };
    let mut elsewhere = good.unverified()?;
    elsewhere.node = "n2".parse()?;
    elsewhere.entries = vec![entry("8080,9000/tcp", None)?];
    let mut expired = good.unverified()?;
    expired.entries.push(entry("8080,9000/tcp", Some("2020-01-01".parse()?))?);
    let widened = SignedPermit { text: good.text.replacen("80/tcp", "80-9000/tcp", 1), ..good.clone() };
    ensure!(widened != good, "nothing was widened");
    Ok(vec![
        ("no permit", None),
        ("an older permit", Some(withdrawn.clone())),
        ("a permit of the thief's own", Some(permit(&OperatorSecret::generate()?, 41, "80,8080,9000/tcp")?)),
        ("another node's permit", Some(elsewhere.sign(operator)?)),
        ("a widened permit", Some(widened)),
        ("a longer signature", Some(SignedPermit { signature: "A".repeat(200), ..good })),
        ("an expired permit", Some(expired.sign(operator)?)),
    ])
}

/// Demands that `order` opens the ingress port, soon.
fn opens(lab: &Lab, deployment: &Deployment, order: &Value) -> Result<()> {
    let sent = Instant::now();
    let answer = send(deployment, &lab.wire, order)?;
    ensure!(answer.status == 200 && !answer.text.contains("not signed"), "{answer:?}");
    expect::answers(&lab.wire, V4, INGRESS, Answer::Data)?;
    let took = sent.elapsed();
    println!("open again {took:.2?} after the order with the operator's permit");
    ensure!(took < REOPENED, "{took:?}");
    Ok(())
}

/// All rules of the node, without their counters.
fn rules(lab: &Lab) -> Result<(String, String)> {
    let guard = run(lab.node().command("nft").args(["--stateless", "list", "ruleset"]))?;
    Ok((lab.saved_rules()?, guard))
}

/// What the agent remembers, but for what it sees by itself.
fn memory(deployment: &Deployment) -> Result<Value> {
    let mut ledger: Value = serde_json::from_slice(&fs::read(deployment.path("state/ledger.json"))?)?;
    for seen in ["outside", "docker_subnets", "peers"] {
        ledger[seen].take();
    }
    Ok(ledger)
}

/// Every port of both protocols, `times` over, each time at another address than before.
fn every_port(times: u64) -> Vec<(Family, &'static str, u16)> {
    let address = |time, port| Family::BOTH[usize::from((time + u64::from(port)) % 2 == 0)];
    let both = |time, port| ["tcp", "udp"].map(|protocol| (address(time, port), protocol, port));
    (0..times).flat_map(|time| (1..=u16::MAX).flat_map(move |port| both(time, port))).collect()
}

/// How many attacks to try: DEADLIGHT_ATTACKS, or what a test run has time for.
fn attacks_wanted(few: u64) -> u64 {
    env::var("DEADLIGHT_ATTACKS").ok().and_then(|wanted| wanted.parse().ok()).unwrap_or(few)
}
