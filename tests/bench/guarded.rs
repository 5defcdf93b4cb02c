//! Nodes with and without a guard, all else the same.

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::{Family::V4, Lab},
    order,
    process::run,
};

/// Nothing listens there: what Docker's own rules cost is not measured here.
const FIRST_CLOSED: u16 = 20_000;

/// A node without Deadlight. The second of them shows how much a ratio is worth.
pub(crate) fn plain() -> Result<Lab> {
    Lab::new(Layout::V28, Backend::Nft, ForwardPolicy::Drop)
}

/// Where the agent keeps ports closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// A set of the kernel's, whatever its size one look.
    Nftables,
    /// One rule for each port in table mangle of iptables-legacy, for kernels without nf_tables.
    Mangle,
}

/// A node whose guard closes `count` ports; the agent itself is gone.
pub(crate) fn guarded(guard: Guard, count: u16) -> Result<Lab> {
    let lab = plain()?;
    let deployment = Deployment::new(&Settings::default())?;
    deployment.prepend("max_new_per_hour = 1000000")?;
    let agent = match guard {
        Guard::Nftables => deployment.start_agent(&lab.wire)?,
        Guard::Mangle => deployment.start_agent_without_nftables(&lab.wire)?,
    };
    let ports: Vec<_> = (FIRST_CLOSED..FIRST_CLOSED + count).map(|port| (V4, "tcp", port)).collect();
    order::enforce(&deployment, &lab.wire, 1, &ports)?;
    agent.kill()?;
    let rules = run(lab.node().command("iptables-legacy-save").args(["-t", "mangle"]))?;
    let standing = rules.lines().filter(|rule| rule.starts_with("-A DEADLIGHT-SHUT ")).count();
    let expected = if guard == Guard::Mangle { usize::from(count) } else { 0 };
    ensure!(standing == expected, "{standing} rules of {guard:?}:\n{rules}");
    Ok(lab)
}
