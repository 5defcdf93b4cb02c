//! Runs dockerd in a cell: processes and mounts of its own, the iptables flavour of choice, and on a kernel without
//! IPVS the answers that make it program swarm ingress all the same.
//!
//! As `deadlight-lab-dockerd [--without-ipvs] DOCKERD [ARGUMENT…]` it is the first process of a fresh pid namespace,
//! so that nothing of Docker outlives it. Under the names `iptables` and `ip6tables` it is what dockerd calls.

#![expect(clippy::print_stderr, reason = "the edge of a program; its stderr is dockerd's log")]

mod cell;
mod iptables;
mod ipvs;
mod seccomp;

use std::{env, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let outcome = match Path::new(&name).file_name().and_then(|it| it.to_str()) {
        Some(family @ ("iptables" | "ip6tables")) => iptables::run(family, arguments),
        _ => cell::run(arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("deadlight-lab-dockerd: {error:#}");
        ExitCode::FAILURE
    })
}
