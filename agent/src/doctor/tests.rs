//! What is said of which facts.

use std::io;
use std::path::{Path, PathBuf};

use deadlight_shared::doctor::{Found, Grade};
use deadlight_shared::tls::Validity;
use deadlight_shared::wire::Mode;
use jiff::{SignedDuration, Timestamp};

use super::facts::{Door, Facts, Identity, Outside, StateDirectory};
use super::judge::judge;
use crate::config::OperatorFileError;
use crate::firewall::iptables::Flavour::{Legacy, Nft};
use crate::firewall::{Change, FirewallError, Inspection, Step, Survey, Tables};
use crate::identity::IdentityError;
use crate::inventory::docker::DockerError;
use crate::inventory::{Engine, Membership};
use crate::ledger::LedgerError;
use crate::node::NodeError;

const HOUR: SignedDuration = SignedDuration::from_hours(1);

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// A node as it should be.
fn good() -> Facts {
    let version = |name: &str| (name.to_owned(), Ok(format!("{name} v1")));
    Facts {
        now: now(),
        mode: Mode::Enforce,
        has_net_admin: true,
        listeners: Ok((7, 0)),
        firewall: Some(Survey {
            programs: ["nft", "iptables-nft-save"].map(version).into(),
            default: Some(Nft),
            nf_tables: Ok(true),
            tables: Ok(Tables { docker: vec![Nft], has_v6: true, has_mesh: true, ..Tables::default() }),
        }),
        docker: Ok(Engine { version: Some("28.5.1".to_owned()), membership: Membership::Manager }),
        has_ipvs: true,
        outside: Outside { names: Ok(["eth0".to_owned()].into()), rp_filter: [("eth0".to_owned(), 1)].into() },
        is_synchronised: Some(true),
        identity: Ok(Identity { validity: Validity { from: now() - HOUR, to: now() + 49 * HOUR }, generation: 3 }),
        operator: Ok(true),
        state: StateDirectory {
            path: PathBuf::from("/var/lib/deadlight"),
            is_there: true,
            is_writable: true,
            closed: Ok(2),
        },
        rules: Some(Ok(Inspection::default())),
        concerns: Vec::new(),
        door: Door::Networks(2),
    }
}

/// What is not well of a node that differs from a good one so.
fn faults(change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let mut facts = good();
    change(&mut facts);
    let not_well = judge(&facts).into_iter().filter(|found| found.grade != Grade::Well);
    let shown = |Found { grade, subject, remedy, .. }: Found| {
        assert!(!remedy.unwrap_or_default().is_empty(), "{subject} has no remedy");
        format!("{} {subject}", if grade == Grade::Wrong { "!!" } else { "??" })
    };
    not_well.map(shown).collect()
}

fn survey(facts: &mut Facts) -> &mut Survey {
    facts.firewall.as_mut().unwrap()
}

fn tables(facts: &mut Facts) -> &mut Tables {
    survey(facts).tables.as_mut().unwrap()
}

fn refused() -> FirewallError {
    FirewallError::Refused { program: "nft".to_owned(), message: "no".to_owned() }
}

fn said(facts: &Facts, subject: &str) -> String {
    judge(facts).into_iter().find(|found| found.subject == subject).unwrap().text
}

#[test]
fn nothing_is_wrong_with_a_good_node() {
    assert_eq!(faults(|_| {}), [""; 0]);
    let subjects: Vec<_> = judge(&good()).into_iter().map(|found| found.subject).collect();
    let wanted = "rights listeners programs guard docker's rules ipv6 docker mesh outside rp_filter clock certificate \
                  trust operator's key state rules door";
    assert_eq!(subjects.join(" "), wanted);
    assert_eq!(said(&good(), "docker"), "engine 28.5.1, manager of a swarm");
}

#[test]
fn without_rights_that_alone_is_said_of_the_firewall() {
    let unprivileged = |facts: &mut Facts| {
        facts.has_net_admin = false;
        facts.listeners = Err(NodeError::Listeners(io::ErrorKind::PermissionDenied.into()));
        facts.firewall = None;
        facts.rules = None;
    };
    assert_eq!(faults(unprivileged), ["!! rights", "!! listeners"]);
    assert_eq!(faults(|it| it.listeners = Ok((7, 3))), ["?? listeners"], "in a container");
}

#[test]
fn programs_and_kernel() {
    let gone = || FirewallError::Run { program: "nft".to_owned(), source: io::ErrorKind::NotFound.into() };
    assert_eq!(faults(|it| survey(it).programs[0].1 = Err(gone())), ["!! programs"]);
    assert_eq!(faults(|it| survey(it).nf_tables = Ok(false)), ["?? guard"]);
    assert_eq!(faults(|it| survey(it).nf_tables = Err(refused())), ["!! guard"]);
}

#[test]
fn dockers_rules_are_in_one_flavour_and_will_be() {
    assert_eq!(faults(|it| survey(it).tables = Err(refused())), ["!! docker's rules"]);
    assert_eq!(faults(|it| survey(it).default = Some(Legacy)), ["?? docker's rules"]);
    assert_eq!(faults(|it| survey(it).default = None), [""; 0]);
    assert_eq!(faults(|it| tables(it).docker.clear()), [""; 0]);
    assert_eq!(faults(|it| tables(it).has_v6 = false), [""; 0]);
    let both = |it: &mut Facts| {
        tables(it).docker = vec![Nft, Legacy];
        it.rules = Some(Ok(Inspection { fault: Some(FirewallError::BothFlavours), ..Inspection::default() }));
    };
    assert_eq!(faults(both), ["!! docker's rules"], "once");
    let mut facts = good();
    tables(&mut facts).has_legacy = true;
    assert!(said(&facts, "docker's rules").contains("iptables-legacy has tables of somebody else's"));
}

#[test]
fn what_others_put_into_docker_user_is_noted() {
    let notes = |rules: &[&str]| -> Vec<String> {
        let mut facts = good();
        tables(&mut facts).docker_user = rules.iter().map(|rule| format!("-A DOCKER-USER {rule}")).collect();
        judge(&facts).into_iter().filter(|found| found.subject == "DOCKER-USER").map(|found| found.text).collect()
    };
    assert!(notes(&["-j RETURN", "-s 192.0.2.1/32 -j DROP"]).is_empty());
    let script = notes(&["-p tcp -m tcp --dport 80 -j ACCEPT", "-p tcp -m tcp --dport 443 -j ACCEPT", "-j RETURN"]);
    assert!(script.len() == 1 && script[0].starts_with("2 rules of the known fix script"), "{script:?}");
    assert!(!script[0].contains("dropped"), "it drops nothing");
    let ufw = notes(&["-j ufw-user-forward"]);
    assert!(ufw[0].starts_with("1 rules of ufw-docker") && ufw[0].contains("stays dropped"), "{ufw:?}");
}

#[test]
fn docker_and_its_mesh() {
    let away = || DockerError::Reach { socket: PathBuf::from("/run/docker.sock"), reason: "no".to_owned() };
    assert_eq!(faults(|it| it.docker = Err(away())), ["!! docker"]);
    assert_eq!(faults(|it| it.has_ipvs = false), ["?? mesh"]);
    assert_eq!(faults(|it| tables(it).has_mesh = false), ["?? mesh"]);
    let alone = |it: &mut Facts| {
        it.docker = Ok(Engine { version: None, membership: Membership::None });
        it.has_ipvs = false;
    };
    assert_eq!(faults(alone), [""; 0], "no swarm, no mesh");
}

#[test]
fn the_outside_is_known_and_its_packets_come_in() {
    assert_eq!(faults(|it| it.outside.names = Ok([].into())), ["!! outside"]);
    let two = |value| {
        move |it: &mut Facts| {
            it.outside.names = Ok(["eth0", "eth1"].map(str::to_owned).into());
            it.outside.rp_filter = [("eth0".to_owned(), 2), ("eth1".to_owned(), value)].into();
        }
    };
    assert_eq!(faults(two(1)), ["?? rp_filter"]);
    assert_eq!(faults(two(2)), [""; 0]);
    assert_eq!(faults(two(0)), [""; 0]);
}

#[test]
fn the_clock_and_what_ends_by_it() {
    assert_eq!(faults(|it| it.is_synchronised = Some(false)), ["?? clock"]);
    assert_eq!(faults(|it| it.is_synchronised = None), ["?? clock"]);
    let ends = |from: SignedDuration, to: SignedDuration| {
        let validity = Validity { from: now() + from, to: now() + to };
        faults(|it| it.identity = Ok(Identity { validity, generation: 0 }))
    };
    assert_eq!(ends(HOUR, 99 * HOUR), ["!! clock"], "before there was a certificate");
    assert_eq!(ends(-HOUR, 48 * HOUR), [""; 0]);
    assert_eq!(ends(-HOUR, 47 * HOUR), ["?? certificate"]);
    assert_eq!(ends(-HOUR, -HOUR), ["!! certificate"]);
    assert_eq!(faults(|it| it.identity = Err(IdentityError::None)), ["?? certificate"]);
    assert_eq!(faults(|it| it.identity = Err(IdentityError::OtherKey)), ["!! certificate"]);
}

#[test]
fn the_operators_key() {
    assert_eq!(faults(|it| it.operator = Ok(false)), [""; 0]);
    let unread = OperatorFileError::Read { path: PathBuf::from("/x"), source: io::ErrorKind::NotFound.into() };
    assert_eq!(faults(|it| it.operator = Err(unread)), ["!! operator's key"]);
}

#[test]
fn what_is_remembered_and_what_stands() {
    assert_eq!(faults(|it| it.state.is_writable = false), ["!! state"]);
    assert_eq!(faults(|it| it.state.is_there = false), [""; 0]);
    let torn = || NodeError::Ledger(LedgerError::Version { path: Path::new("/x").to_owned() });
    assert_eq!(faults(|it| it.state.closed = Err(torn())), ["!! state"]);
    let missing = || {
        let step = Step { program: vec!["nft".to_owned()], script: "x".to_owned(), ports: Vec::new() };
        Some(Ok(Inspection { change: Change { steps: vec![step] }, ..Inspection::default() }))
    };
    assert_eq!(faults(|it| it.rules = missing()), ["!! rules"]);
    assert_eq!(faults(|it| it.rules = Some(Err(refused().into()))), ["!! rules"]);
    let observes = |it: &mut Facts| (it.mode, it.rules) = (Mode::Observe, missing());
    assert_eq!(faults(observes), ["?? rules"]);
}

#[test]
fn who_reaches_the_agent() {
    assert_eq!(faults(|it| it.door = Door::None), [""; 0]);
    assert_eq!(faults(|it| it.door = Door::Everybody), ["?? door"]);
    assert_eq!(faults(|it| it.concerns.push("no node\nis known".to_owned())), ["!! agent"]);
}
