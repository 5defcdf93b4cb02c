//! What goes wrong on the node: the answer names it, and the guard closes whatever it can.

use std::fs::{self, File};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::Answer,
    deployment::{AGENT_PORT, Deployment, Settings},
    docker_rules::{self, Backend, ForwardPolicy, Layout},
    hostile::Response,
    lab::{
        Family::{self, V4, V6},
        INGRESS, Lab, RUN,
    },
    order::{order, send},
    process::run_with_input,
    programs::{self, built, finish},
};
use serde_json::{Value, json};

use crate::expect;

#[test]
fn protected_ports_are_refused_and_nothing_is_written() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft)?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let before = (lab.saved_rules()?, lab.native_tables()?);
    let protected = [(V4, "tcp", 22), (V6, "tcp", AGENT_PORT), (V4, "tcp", 2377), (V4, "udp", 4789), (V6, "udp", 7946)];
    let response = send(&deployment, &lab.wire, &order_without_allowlist(&protected))?;
    ensure!(response.text.matches("\"refused\"").count() == protected.len(), "{response:?}");
    ensure!((lab.saved_rules()?, lab.native_tables()?) == before, "rules changed");
    Ok(())
}

#[test]
fn over_the_budget_new_ports_are_held() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft)?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let ports: Vec<_> = (20_001..=20_025).map(|port| (V4, "tcp", port)).collect();
    let response = send(&deployment, &lab.wire, &order(1, &ports))?;
    ensure!(response.text.matches("\"enforced\"").count() == 20, "{response:?}");
    ensure!(response.text.matches("\"pending\"").count() == 5, "{response:?}");
    ensure!(response.text.contains("max_new_per_hour"), "{response:?}");
    Ok(())
}

#[test]
fn docker_in_both_flavours_is_failed_and_closed_all_the_same() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft)?;
    docker_rules::load(lab.node(), Layout::V26, Backend::Legacy, ForwardPolicy::Drop)?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let response = send(&deployment, &lab.wire, &order(1, &[(V4, "tcp", INGRESS)]))?;
    failed(&response, "iptables-nft and in iptables-legacy at once")?;
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}

#[test]
fn a_table_that_iptables_cannot_read_is_failed_and_closed_all_the_same() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft)?;
    let foreign = "add rule ip filter DOCKER-USER ct count over 20 drop\n";
    run_with_input(lab.node().command("nft").args(["-f", "-"]), foreign)?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let response = send(&deployment, &lab.wire, &order(1, &[(V4, "tcp", INGRESS), (V4, "tcp", RUN)]))?;
    failed(&response, "incompatible")?;
    expect::closed(&lab.wire, &[(V4, INGRESS), (V4, RUN)])
}

#[test]
fn a_held_lock_is_pending_and_closed_all_the_same() -> Result<()> {
    let (lab, deployment) = world(Backend::Legacy)?;
    let path = deployment.path("xtables.lock");
    let lock = File::create(&path)?;
    lock.lock()?;
    let mut command = lab.node().command(built("deadlight-agent")?);
    command.env("XTABLES_LOCKFILE", &path);
    let _agent = deployment.start_agent_by(command, &lab.wire)?;
    let response = send(&deployment, &lab.wire, &order(1, &[(V4, "tcp", INGRESS)]))?;
    ensure!(response.text.contains("\"pending\"") && response.text.contains("xtables lock"), "{response:?}");
    expect::closed(&lab.wire, &[(V4, INGRESS)])?;
    drop(lock);
    let response = send(&deployment, &lab.wire, &order(2, &[(V4, "tcp", INGRESS)]))?;
    ensure!(response.text.contains("\"enforced\""), "after the lock is free: {response:?}");
    Ok(())
}

#[test]
fn missing_programs_are_failed_with_the_package_to_install() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft)?;
    let _agent = deployment.start_agent_by(
        programs::agent_apart(lab.node(), "mount --bind /dev/null \"$(readlink -f /usr/sbin/nft)\"")?,
        &lab.wire,
    )?;
    let response = send(&deployment, &lab.wire, &order(1, &[(V4, "tcp", INGRESS)]))?;
    failed(&response, "failed to run nft")?;
    ensure!(response.text.contains("install the packages nftables and iptables"), "{response:?}");
    expect::tcp(lab.inet(), V4.node(INGRESS), Answer::Data)
}

#[test]
fn a_full_disk_closes_all_the_same_and_says_not_persisted() -> Result<()> {
    not_persisted(programs::FULL)
}

#[test]
fn a_read_only_state_directory_closes_all_the_same_and_says_not_persisted() -> Result<()> {
    not_persisted(programs::READ_ONLY)
}

#[test]
fn a_torn_ledger_is_left_alone_and_nothing_changes() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft)?;
    fs::create_dir_all(deployment.path("state"))?;
    fs::write(deployment.path("state/ledger.json"), "{\"schema\":")?;
    let before = (lab.saved_rules()?, lab.native_tables()?);
    for words in [["revert", "--all"], ["harden", "--allow=80/tcp"]] {
        let ended = deployment.agent(&lab.wire, &words)?.expect_code(2)?;
        ensure!(ended.stderr.contains("is not a ledger") && ended.stderr.contains("hint:"), "{ended:?}");
    }
    ensure!(fs::read_to_string(deployment.path("state/ledger.json"))? == "{\"schema\":", "the file was touched");
    ensure!((lab.saved_rules()?, lab.native_tables()?) == before, "rules changed");
    Ok(())
}

#[test]
fn a_wrong_line_in_the_configuration_is_named_and_nothing_starts() -> Result<()> {
    let (lab, deployment) = world(Backend::Nft)?;
    let before = (lab.saved_rules()?, lab.native_tables()?);
    let good = fs::read_to_string(deployment.path("agent.toml"))?;
    for (wrong, said) in [
        ("lisen = \"[::]:1\"", "line 1: unknown field `lisen`"),
        ("outside = [\"eth0; drop\"]", "is not an interface name"),
        ("protected = [\"443-80/tcp\"]", "runs backwards"),
        ("protected = [\"0/tcp\"]", "port 0 is out of range"),
        ("protected = [\"80/sctp\"]", "unknown protocol `sctp`"),
    ] {
        fs::write(deployment.path("agent.toml"), format!("{wrong}\n{good}"))?;
        for words in [["run"].as_slice(), &["check-config"], &["harden", "--allow=80/tcp", "--once"]] {
            let ended = deployment.agent(&lab.wire, words)?.expect_code(2)?;
            ensure!(ended.stderr.contains(said), "{wrong}: {ended:?}");
        }
    }
    ensure!((lab.saved_rules()?, lab.native_tables()?) == before, "rules changed");
    Ok(())
}

#[test]
fn without_root_the_firewall_is_not_touched_and_the_remedy_is_named() -> Result<()> {
    let (lab, _) = world(Backend::Nft)?;
    let mut ordinary = lab.node().command("setpriv");
    ordinary.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--"]);
    ordinary.arg(built("deadlight-agent")?).args(["harden", "--allow=80/tcp", "--once"]);
    let ended = finish(&mut ordinary)?.expect_code(2)?;
    ensure!(ended.stderr.contains("hint:") && ended.stderr.contains("root"), "{ended:?}");
    ensure!(!lab.native_tables()?.iter().any(|table| table.contains("deadlight")), "a table was written");
    Ok(())
}

fn not_persisted(prepare: &str) -> Result<()> {
    let (lab, deployment) = world(Backend::Nft)?;
    let state = deployment.path("state");
    fs::create_dir_all(&state)?;
    let mut command = programs::agent_apart(lab.node(), prepare)?;
    command.env("STATE", &state);
    let agent = deployment.start_agent_by(command, &lab.wire)?;
    let response = send(&deployment, &lab.wire, &order(1, &[(V4, "tcp", INGRESS)]))?;
    ensure!(response.text.contains("\"enforced\""), "{response:?}\n{}", agent.log());
    ensure!(response.text.contains("state not persisted"), "{response:?}");
    expect::closed(&lab.wire, &[(V4, INGRESS)])
}

fn world(backend: Backend) -> Result<(Lab, Deployment)> {
    let lab = Lab::new(Layout::V26, backend, ForwardPolicy::Drop)?;
    Ok((lab, Deployment::new(&Settings::default())?))
}

fn failed(response: &Response, why: &str) -> Result<()> {
    ensure!(response.status == 200 && response.text.contains("\"failed\""), "{response:?}");
    ensure!(!response.text.contains("\"enforced\""), "{response:?}");
    ensure!(response.text.contains(why), "{why:?} is not said: {response:?}");
    Ok(())
}

fn order_without_allowlist(ports: &[(Family, &str, u16)]) -> Value {
    let mut body = order(1, ports);
    body["allow"] = json!([]);
    body
}
