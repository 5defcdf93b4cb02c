//! Programs that take the firewall for their own: the real ufw and the real firewalld.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use deadlight_tests::{
    docker_rules::{
        self,
        Backend::{self, Legacy, Nft},
        ForwardPolicy, Layout,
    },
    lab::Lab,
    process::run,
    programs::Running,
    scratch,
};
use tempfile::TempDir;

use super::{
    Loss::{Docker, Nothing},
    put_back,
};

#[test]
fn ufw_reload_nft() -> Result<()> {
    put_back((Layout::V28, Nft), Nothing, |lab| ufw(lab, "no"), ufw_reload)
}

#[test]
fn ufw_reload_legacy() -> Result<()> {
    put_back((Layout::V28, Legacy), Nothing, |lab| ufw(lab, "no"), ufw_reload)
}

#[test]
fn ufw_reload_that_flushes_everything_nft() -> Result<()> {
    put_back((Layout::V28, Nft), Docker, |lab| ufw(lab, "yes"), ufw_reload_and_docker)
}

#[test]
fn ufw_reload_that_flushes_everything_legacy() -> Result<()> {
    put_back((Layout::V28, Legacy), Docker, |lab| ufw(lab, "yes"), ufw_reload_and_docker)
}

#[test]
fn firewalld_reload_by_nftables_beside_docker_in_nft() -> Result<()> {
    firewalld_reload(Nft, "nftables")
}

#[test]
fn firewalld_reload_by_nftables_beside_docker_in_legacy() -> Result<()> {
    firewalld_reload(Legacy, "nftables")
}

#[test]
fn firewalld_reload_by_iptables_beside_docker_in_nft() -> Result<()> {
    firewalld_reload(Nft, "iptables")
}

#[test]
fn firewalld_reload_by_iptables_beside_docker_in_legacy() -> Result<()> {
    firewalld_reload(Legacy, "iptables")
}

fn firewalld_reload(backend: Backend, its_backend: &str) -> Result<()> {
    put_back(
        (Layout::V28, backend),
        Docker,
        |lab| Firewalld::start(lab, its_backend),
        |lab, _| {
            run(lab.node().command("firewall-cmd").arg("--reload"))?;
            load_again(lab)
        },
    )
}

/// Enables ufw with nothing closed: it is Docker's neighbour here and not the one who shuts ports.
fn ufw(lab: &mut Lab, manage_builtins: &str) -> Result<()> {
    let etc = lab.wire.node.furnish(lab.backend)?;
    set(
        &etc.join("default/ufw"),
        &[
            ("DEFAULT_INPUT_POLICY", "\"ACCEPT\""),
            ("DEFAULT_FORWARD_POLICY", "\"ACCEPT\""),
            ("MANAGE_BUILTINS", manage_builtins),
            ("IPT_SYSCTL", ""),
        ],
    )?;
    run(lab.node().command("ufw").args(["--force", "enable"]))?;
    if manage_builtins == "yes" { load_again(lab) } else { Ok(()) }
}

fn ufw_reload(lab: &Lab, (): &()) -> Result<()> {
    run(lab.node().command("ufw").arg("reload")).map(drop)
}

/// Docker does not hear of it, so that the operator starts it again.
fn ufw_reload_and_docker(lab: &Lab, (): &()) -> Result<()> {
    ufw_reload(lab, &())?;
    load_again(lab)
}

/// A running firewalld whose zone accepts everything, and its message bus.
struct Firewalld {
    _daemon: Running,
    _bus: Running,
    _logs: TempDir,
}

impl Firewalld {
    fn start(lab: &mut Lab, backend: &str) -> Result<Self> {
        let etc = lab.wire.node.furnish(lab.backend)?;
        set(&etc.join("firewalld/firewalld.conf"), &[("FirewallBackend", backend), ("DefaultZone", "trusted")])?;
        let logs = scratch::directory()?;
        run(lab.node().command("mkdir").args(["/run/dbus", "/run/firewalld"]))?;
        let mut bus = lab.node().command("dbus-daemon");
        let mut bus = Running::start(bus.args(["--system", "--nofork", "--nopidfile"]), "dbus", logs.path())?;
        let socket = |lab: &Lab| run(lab.node().command("test").args(["-S", "/run/dbus/system_bus_socket"])).is_ok();
        bus.wait_ready(Duration::from_secs(10), || socket(lab))?;
        let mut daemon = lab.node().command("firewalld");
        let mut daemon = Running::start(daemon.args(["--nofork", "--nopid"]), "firewalld", logs.path())?;
        let is_running = |lab: &Lab| run(lab.node().command("firewall-cmd").arg("--state")).is_ok();
        daemon.wait_ready(Duration::from_secs(30), || is_running(lab))?;
        load_again(lab)?;
        Ok(Self { _daemon: daemon, _bus: bus, _logs: logs })
    }
}

/// What dockerd does once it learns that its rules are gone.
fn load_again(lab: &Lab) -> Result<()> {
    docker_rules::load(lab.node(), lab.layout, lab.backend, ForwardPolicy::Accept)
}

/// Sets keys in a file of `KEY=value` lines, each of which is there already.
fn set(file: &Path, values: &[(&str, &str)]) -> Result<()> {
    let mut text = fs::read_to_string(file)?;
    for (key, value) in values {
        let line = text.lines().find(|line| line.starts_with(&format!("{key}="))).map(str::to_owned);
        let line = line.with_context(|| format!("{} has no {key}", file.display()))?;
        text = text.replace(&line, &format!("{key}={value}"));
    }
    Ok(fs::write(file, text)?)
}
