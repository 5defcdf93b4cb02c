//! The known fix script, the peer of all that is written here: `iptables-save | sed | iptables-restore`, then its two
//! rules in DOCKER-USER.

use std::process::Command;

use crate::{
    docker_rules::Backend,
    process::{run, run_with_input},
};
use anyhow::Result;

/// Runs it once; `program` starts a program on the node.
pub fn run_once(backend: Backend, program: impl Fn(String) -> Command) -> Result<()> {
    let saved = run(&mut program(backend.tool("iptables", "-save")))?;
    let narrowed: String = saved.lines().map(|line| narrow(line) + "\n").collect();
    run_with_input(&mut program(backend.tool("iptables", "-restore")), &narrowed)?;
    for port in ["80", "443"] {
        let mut insert = program(backend.tool("iptables", ""));
        run(insert.args(["-I", "DOCKER-USER", "-p", "tcp", "--dport", port, "-j", "ACCEPT"]))?;
    }
    Ok(())
}

fn narrow(line: &str) -> String {
    match line.strip_suffix(" -j ACCEPT") {
        Some(rule) if line.starts_with("-A DOCKER-INGRESS") && rule.contains("--dport") && !rule.contains(" -s ") => {
            format!("{rule} -s 172.16.0.0/12 -j ACCEPT")
        }
        _ => line.to_owned(),
    }
}
