//! What a node does to its kernel and its ledger, on a machine in memory.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use deadlight_shared::wire::{Order, OutcomeStatus, Report};
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::config::Config;
use crate::firewall::fake::Fake;
use crate::firewall::iptables::Dnat;
use crate::firewall::{Desired, DockerRules, Firewall, FirewallError};
use crate::inventory::docker::DockerError;
use crate::inventory::{Container, Facts, NetlinkError, Networks, Process, Service};
use crate::ledger::{Answered, Closure};
use crate::node::{Docker, Host};

/// What the node stands on.
#[derive(Clone, Default)]
struct Machine(Arc<Mutex<Parts>>);

#[derive(Default)]
struct Parts {
    ledger: Ledger,
    saves: usize,
    listeners: Vec<Listener>,
    docker: Option<DockerFacts>,
    docker_asked: usize,
    addresses: Vec<(String, IpAddr)>,
    /// Another process holds the ledger.
    is_held: bool,
    is_full: bool,
    /// How often sessions that are tracked the wrong way round were looked for.
    severed: usize,
}

impl Machine {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap()
    }

    fn severed_and_saved(&self) -> (usize, usize) {
        let parts = self.parts();
        (parts.severed, parts.saves)
    }
}

impl Host for Machine {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn lock(&self) -> Result<Option<File>, LedgerError> {
        if self.parts().is_held { Err(LedgerError::Busy { path: "/state".into() }) } else { Ok(None) }
    }

    fn load(&self) -> Result<Ledger, LedgerError> {
        Ok(self.parts().ledger.clone())
    }

    fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let mut parts = self.parts();
        if parts.is_full {
            let source = io::ErrorKind::StorageFull.into();
            return Err(LedgerError::Write { path: "/state/ledger.json".into(), source });
        }
        parts.ledger = ledger.clone();
        parts.saves += 1;
        Ok(())
    }

    fn listeners(&self) -> io::Result<Vec<Listener>> {
        Ok(self.parts().listeners.clone())
    }

    fn outside(&self) -> Result<BTreeSet<String>, NetlinkError> {
        Ok(["eth0".to_owned()].into())
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        self.parts().addresses.clone()
    }

    fn forget_reversed(&self, _listeners: &[Listener], _closed: &PortSet) {
        self.parts().severed += 1;
    }

    fn networks(&self) -> Docker<'_, Result<Networks, DockerError>> {
        let mut parts = self.parts();
        parts.docker_asked += 1;
        let networks = parts.docker.as_ref().map(|docker| docker.networks.clone());
        Box::pin(async { networks.ok_or(DockerError::Hung { socket: "/docker.sock".into() }) })
    }

    fn facts(&self, _ports: PortSet) -> Docker<'_, Facts> {
        let parts = self.parts();
        let facts = Facts {
            flows: Ok(Vec::new()),
            listeners: Ok(parts.listeners.clone()),
            docker: parts.docker.clone().ok_or_else(|| "away".to_owned()),
            addresses: Vec::new(),
        };
        Box::pin(async { facts })
    }
}

/// A kernel in which Docker publishes some ports.
#[derive(Clone)]
struct Kernel {
    fake: Fake,
    published: PortSet,
}

impl Firewall for Kernel {
    fn inspect(&self, desired: &Desired) -> Result<Inspection, FirewallError> {
        let dnat = |port| Dnat { chain: "DOCKER", port, on: None, to: [172, 17, 0, 2].into(), to_port: 80 };
        let docker = DockerRules { dnat: self.published.iter().map(dnat).collect(), lines: Vec::new() };
        Ok(Inspection { docker, ..self.fake.inspect(desired)? })
    }

    fn apply(&self, change: &Change) -> Result<(), FirewallError> {
        self.fake.apply(change)
    }

    fn lines_for(&self, port: Port, desired: &Desired, docker: &DockerRules) -> Vec<String> {
        self.fake.lines_for(port, desired, docker)
    }
}

struct World {
    node: Node,
    machine: Machine,
    kernel: Kernel,
}

impl World {
    /// A node that enforces, on which Docker publishes `published`.
    fn new(published: &str, change: impl FnOnce(&mut Config)) -> Self {
        let machine = Machine::default();
        let kernel = Kernel { fake: Fake::default(), published: ports(published) };
        let mut config = Config { mode: Mode::Enforce, max_new_per_hour: 20, ..Config::default() };
        change(&mut config);
        let name = "n1".parse().unwrap();
        let node = Node::on(Box::new(machine.clone()), name, config, Box::new(kernel.clone()));
        Self { node, machine, kernel }
    }

    fn close(&self, ports: &str, origin: &Origin) {
        for port in ports.parse::<PortSet>().unwrap().iter() {
            let closure = Closure { port, origin: origin.clone(), since: Timestamp::UNIX_EPOCH };
            self.machine.parts().ledger.close(closure);
        }
    }

    /// What the kernel holds closed.
    fn closed(&self) -> String {
        let [one, other, third] = self.kernel.fake.tables();
        assert!(one == other && other == third, "each table is whole");
        one.into_iter().collect::<PortSet>().to_string()
    }

    fn remembered(&self) -> String {
        self.machine.parts().ledger.closed().to_string()
    }

    async fn answer(&self, order: &Order) -> Result<Report, NodeError> {
        self.node.answer(order, [192, 0, 2, 1].into()).await
    }
}

/// The ports of this text; an empty one names none.
fn ports(text: &str) -> PortSet {
    if text.is_empty() { PortSet::default() } else { text.parse().unwrap() }
}

fn order(sequence: u64, closed: &[u16]) -> Order {
    let finding = |port: &u16| {
        serde_json::json!({
            "id": format!("{port:016x}"), "address": "198.51.100.11", "protocol": "tcp", "port": port,
            "evidence": "syn-ack",
        })
    };
    serde_json::from_value(serde_json::json!({
        "schema": Order::SCHEMA, "scanner": "office-a", "epoch": 1, "sequence": sequence, "scan": "x", "node": "n1",
        "expires_at": Timestamp::UNIX_EPOCH + SignedDuration::from_mins(10),
        "findings": closed.iter().map(finding).collect::<Vec<_>>(), "allow": [],
    }))
    .unwrap()
}

fn statuses(report: &Report) -> Vec<OutcomeStatus> {
    report.outcomes.iter().map(|outcome| outcome.status).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_is_put_back_and_what_stands_is_left_alone() {
    let world = World::new("", |_| {});
    world.close("80/tcp", &Origin::Local);
    assert_eq!(world.node.arm().await.unwrap().len(), 1);
    assert_eq!((world.closed().as_str(), world.machine.parts().severed), ("80/tcp", 1));
    assert!(world.machine.parts().ledger.armed, "the guard stands from now on");
    assert!(world.node.arm().await.unwrap().is_empty());
    assert_eq!(world.machine.parts().severed, 2, "an earlier start may have been cut short");

    let saves = world.machine.parts().saves;
    assert!(world.node.reconcile().await.unwrap().is_empty());
    assert_eq!(world.machine.severed_and_saved(), (2, saves), "nothing was done");
    world.kernel.fake.clobber(1, Vec::new());
    let asked = world.machine.parts().docker_asked;
    assert_eq!(world.node.restore().await.unwrap().len(), 1);
    assert_eq!((world.closed().as_str(), world.machine.parts().severed), ("80/tcp", 3));
    assert_eq!(world.machine.parts().docker_asked, asked, "Docker may not have started yet");
    world.kernel.fake.clobber(2, Vec::new());
    assert_eq!(world.node.reconcile().await.unwrap().len(), 1);
    assert_eq!(world.closed(), "80/tcp");
    assert!(world.machine.parts().docker_asked > asked);
    assert!(world.machine.parts().ledger.armed);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_iptables_legacy_are_well_as_a_look_has_read_them_itself() {
    const NARROW: &str = "*filter\n:DOCKER-INGRESS - [0:0]\n-A DOCKER-INGRESS -s 172.16.0.0/12 -j ACCEPT\nCOMMIT\n";
    const WIDE: &str = "*filter\n:DOCKER-INGRESS - [0:0]\n-A DOCKER-INGRESS -j ACCEPT\nCOMMIT\n";
    let saves = |rules| [Save::parse(rules).unwrap(), Save::default()];
    let world = World::new("", |_| {});
    world.close("80/tcp", &Origin::Local);
    assert!(!world.node.is_well(&saves(NARROW)).await, "nobody looked yet");
    world.kernel.fake.set_legacy(NARROW);
    world.node.reconcile().await.unwrap();
    assert!(!world.node.is_well(&saves(NARROW)).await, "that look had something to do");
    // However often dockerd shows another reader something else meanwhile.
    for _ in 0..3 {
        world.node.restore().await.unwrap();
        assert!(world.node.is_well(&saves(NARROW)).await && !world.node.is_well(&saves(WIDE)).await);
    }
    world.kernel.fake.hold_lock(true);
    world.kernel.fake.clobber(1, Vec::new());
    world.node.restore().await.unwrap_err();
    assert!(!world.node.is_well(&saves(NARROW)).await, "a look that failed");
    let observing = World::new("", |config| config.mode = Mode::Observe);
    assert!(observing.node.is_well(&saves(WIDE)).await, "nothing is kept there");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_observe_mode_an_order_changes_nothing_and_says_what_it_would() {
    let world = World::new("80/tcp", |config| {
        (config.mode, config.posture) = (Mode::Observe, Posture::Allowlist);
    });
    world.close("81/tcp", &Origin::Local);
    for changes in [world.node.arm().await, world.node.reconcile().await, world.node.restore().await] {
        assert!(changes.unwrap().is_empty());
    }
    let report = world.answer(&order(1, &[80, 22])).await.unwrap();
    assert_eq!(statuses(&report), [OutcomeStatus::Observed, OutcomeStatus::Refused]);
    assert_eq!(report.outcomes[0].rules, ["close 80/tcp"]);
    assert_eq!((world.kernel.fake.writes(), world.remembered().as_str()), (0, "81/tcp"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_carried_out_once_and_an_older_one_never() {
    let world = World::new("", |_| {});
    let report = world.answer(&order(2, &[80])).await.unwrap();
    assert_eq!((statuses(&report), world.closed().as_str()), (vec![OutcomeStatus::Enforced], "80/tcp"));
    world.node.revert(Selection::Port("80/tcp".parse().unwrap())).await.unwrap();
    for sequence in [2, 1] {
        assert_eq!(world.answer(&order(sequence, &[80])).await.unwrap(), report, "the stored report");
        assert_eq!(world.closed(), "", "nothing is done");
    }
    let next = world.answer(&order(3, &[80])).await.unwrap();
    assert_eq!((next.order.sequence, world.closed().as_str()), (3, "80/tcp"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_a_crash_cut_short_is_carried_out_again() {
    let world = World::new("", |_| {});
    let cut = order(2, &[80]);
    world.machine.parts().ledger.orders.insert(cut.scanner.clone(), Answered::begun(&cut));
    assert!(matches!(world.answer(&order(1, &[81])).await, Err(NodeError::Stale)));
    assert_eq!(world.closed(), "");
    assert_eq!(statuses(&world.answer(&cut).await.unwrap()), [OutcomeStatus::Enforced]);
    assert_eq!(world.closed(), "80/tcp");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_while_another_process_holds_the_ledger() {
    let world = World::new("80/tcp", |_| {});
    world.close("81/tcp", &Origin::Local);
    world.machine.parts().is_held = true;
    assert!(world.answer(&order(1, &[80])).await.is_err());
    assert!(world.node.arm().await.is_err() && world.node.revert(Selection::All).await.is_err());
    assert!(world.node.harden(&PortSet::default(), false).await.is_err());
    assert_eq!((world.kernel.fake.writes(), world.machine.parts().saves), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_on_an_address_that_no_rule_covers_is_not_called_closed() {
    let world = World::new("", |_| {});
    for (sequence, interface, wanted) in
        [(1, "eth0", OutcomeStatus::Enforced), (2, "lo", OutcomeStatus::Enforced), (3, "eth1", OutcomeStatus::Failed)]
    {
        world.machine.parts().addresses =
            vec![("eth9".to_owned(), [10; 4].into()), (interface.to_owned(), [198, 51, 100, 11].into())];
        let outcome = world.answer(&order(sequence, &[80])).await.unwrap().outcomes.remove(0);
        assert_eq!(outcome.status, wanted, "{interface}");
        assert_eq!(outcome.reason.contains("add it to `outside`"), interface == "eth1", "{}", outcome.reason);
        assert_eq!(outcome.rules.is_empty(), interface == "eth1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lock_of_the_firewall_is_pending_and_a_rule_that_does_not_stand_failed() {
    let world = World::new("", |_| {});
    world.kernel.fake.hold_lock(true);
    let held = world.answer(&order(1, &[80])).await.unwrap().outcomes.remove(0);
    assert_eq!(held.status, OutcomeStatus::Pending);
    assert!(held.reason.contains("fuser"), "{}", held.reason);
    world.kernel.fake.hold_lock(false);
    world.kernel.fake.lose_next_writes(usize::MAX);
    let lost = world.answer(&order(2, &[80])).await.unwrap().outcomes.remove(0);
    assert_eq!(lost.status, OutcomeStatus::Failed);
    assert_eq!(world.remembered(), "80/tcp", "it is tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn repairs_are_told_in_the_next_report_the_last_twenty_of_them() {
    let world = World::new("", |_| {});
    world.close("80/tcp", &Origin::Local);
    world.node.arm().await.unwrap();
    for number in 0..25 {
        world.kernel.fake.clobber(0, Vec::new());
        let written = world.node.reconcile().await.unwrap();
        world.node.remember_drift(&written, &format!("author {number}")).await;
    }
    world.node.remember_drift(&[], "nobody").await;
    let warnings = world.answer(&order(1, &[])).await.unwrap().warnings;
    assert_eq!(warnings.len(), 20);
    assert!(warnings[0].ends_with("put back by fake; likely author: author 5"), "{}", warnings[0]);
    assert!(world.answer(&order(2, &[])).await.unwrap().warnings.is_empty(), "told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_opens_nothing_and_is_made_good_later() {
    let world = World::new("", |_| {});
    world.machine.parts().is_full = true;
    let report = world.answer(&order(1, &[80])).await.unwrap();
    assert_eq!(statuses(&report), [OutcomeStatus::Enforced]);
    assert!(report.warnings[0].starts_with("state not persisted"), "{:?}", report.warnings);
    assert!(world.node.reconcile().await.unwrap().is_empty());
    assert_eq!((world.closed().as_str(), world.remembered().as_str()), ("80/tcp", ""));
    world.machine.parts().is_full = false;
    world.node.reconcile().await.unwrap();
    assert_eq!(world.remembered(), "80/tcp");
}

#[tokio::test(flavor = "multi_thread")]
async fn revert_opens_one_port_or_all() {
    let world = World::new("", |_| {});
    world.close("80-82/tcp", &Origin::Local);
    world.node.arm().await.unwrap();
    let reverted = world.node.revert(Selection::Port("81/tcp".parse().unwrap())).await.unwrap();
    assert_eq!((reverted.written.len(), world.closed().as_str()), (1, "80/tcp,82/tcp"));
    assert_eq!(world.remembered(), "80/tcp,82/tcp");
    world.node.revert(Selection::All).await.unwrap();
    assert_eq!((world.closed(), world.remembered()), (String::new(), String::new()));
    assert!(!world.machine.parts().ledger.armed, "as if the agent had never run");
}

fn proxy(port: &str, address: [u8; 4], program: &str) -> Listener {
    let process = Process { pid: 900, program: program.to_owned(), ..Process::default() };
    Listener { port: port.parse().unwrap(), address: address.into(), process: Some(process), is_hidden: false }
}

/// In a container that may not look into other processes, sshd would look like anybody.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_hidden_process_listens_on_is_refused_unless_docker_publishes_it_or_it_is_closed() {
    let world = World::new("80/tcp", |_| {});
    world.close("81/tcp", &Origin::Local);
    let hidden = |port| Listener { process: None, is_hidden: true, ..proxy(port, [0; 4], "") };
    world.machine.parts().listeners = ["80/tcp", "81/tcp", "2222/tcp"].map(hidden).to_vec();
    let report = world.answer(&order(1, &[80, 81, 82, 2222])).await.unwrap();
    let (enforced, refused) = (OutcomeStatus::Enforced, OutcomeStatus::Refused);
    assert_eq!(statuses(&report), [enforced, enforced, enforced, refused]);
    assert!(report.outcomes[3].reason.contains("which may be sshd"), "{}", report.outcomes[3].reason);
    assert_eq!(world.closed(), "80-82/tcp");
}

#[tokio::test(flavor = "multi_thread")]
async fn harden_closes_all_that_docker_publishes_by_any_word_of_it() {
    let world = World::new("22,80,81/tcp", |_| {});
    world.close("81,99/tcp", &Origin::Order("office-a".parse().unwrap()));
    {
        let mut parts = world.machine.parts();
        parts.listeners = vec![
            proxy("82/tcp", [0; 4], "docker-proxy"),
            proxy("83/tcp", [127, 0, 0, 1], "docker-proxy"),
            proxy("84/tcp", [0; 4], "nginx"),
        ];
        let container = Container { published: vec!["85/tcp".parse().unwrap()], ..Container::default() };
        let service = Service { ingress: vec!["86/tcp".parse().unwrap()], ..Service::default() };
        let docker =
            DockerFacts { containers: vec![container], services: Some(vec![service]), ..DockerFacts::default() };
        parts.docker = Some(docker);
    }
    let planned = world.node.harden(&ports("81/tcp"), true).await.unwrap();
    assert_eq!(planned.closed.to_string(), "80/tcp,82/tcp,85-86/tcp,99/tcp");
    assert_eq!((planned.written.len(), world.kernel.fake.writes(), world.machine.parts().saves), (1, 0, 0));

    let hardened = world.node.harden(&ports("81/tcp"), false).await.unwrap();
    assert_eq!(hardened.closed, planned.closed);
    assert_eq!(hardened.refused, ["22/tcp is protected: ssh may be the only way in"]);
    assert_eq!((world.closed(), world.remembered()), (planned.closed.to_string(), planned.closed.to_string()));
    assert_eq!(world.machine.severed_and_saved(), (1, 1));
    assert!(world.machine.parts().ledger.armed);

    let again = world.node.harden(&ports("81/tcp"), false).await.unwrap();
    assert!(again.written.is_empty() && world.node.harden(&ports("81/tcp"), true).await.unwrap().written.is_empty());
    assert_eq!(world.machine.parts().saves, 1, "there was nothing to write");
}

#[tokio::test(flavor = "multi_thread")]
async fn harden_saves_what_a_full_disk_kept_from_being_saved() {
    let world = World::new("80/tcp", |_| {});
    world.machine.parts().is_full = true;
    assert!(world.node.harden(&PortSet::default(), false).await.unwrap().unsaved.is_some());
    assert_eq!((world.closed().as_str(), world.remembered().as_str()), ("80/tcp", ""));
    world.machine.parts().is_full = false;
    assert!(world.node.harden(&PortSet::default(), false).await.unwrap().unsaved.is_none());
    assert_eq!(world.remembered(), "80/tcp");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_posture_closes_what_is_published_and_takes_its_own_word_back_alone() {
    let world = World::new("22,80,81/tcp", |config| {
        (config.posture, config.allow) = (Posture::Allowlist, ports("81,90,91/tcp"));
    });
    world.close("90/tcp", &Origin::Posture);
    world.close("91/tcp", &Origin::Local);
    world.close("92/tcp", &Origin::Posture);
    world.node.reconcile().await.unwrap();
    // What is no longer published stays closed: an engine that restarts publishes it again.
    assert_eq!(world.closed(), "80/tcp,91-92/tcp");
    assert_eq!(world.remembered(), "80/tcp,91-92/tcp");

    let reported = World::new("80/tcp", |_| {});
    reported.close("90/tcp", &Origin::Posture);
    reported.close("91/tcp", &Origin::Local);
    reported.node.reconcile().await.unwrap();
    assert_eq!(reported.closed(), "91/tcp", "another posture, another word");
}
