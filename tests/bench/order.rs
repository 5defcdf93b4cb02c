//! From "order received" to "rules read back", as the agent logs it, beside the known fix script.
//! Every order changes the kernel: 8080 is closed and tightened, or opened again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::{Family, INGRESS, Lab, RUN, Wire},
    order::{enforce, order, send},
    process::{run, run_with_input},
};
use serde_json::json;

use crate::{percentile, row};

const ORDERS: u64 = 1_000;
const SCRIPT_RUNS: usize = 100;

pub(crate) fn measure() -> Result<()> {
    for backend in [Backend::Nft, Backend::Legacy] {
        let lab = Lab::new(Layout::V28, backend, ForwardPolicy::Drop)?;
        let ours = orders(&lab)?;
        let script = script(&lab.wire, backend)?;
        let name = backend.name();
        let peer = |percent| Some(("fix script", percentile(&script, percent)));
        row(&format!("order to read back, {name}, p50 of {ORDERS}"), percentile(&ours, 50), peer(50));
        row(&format!("order to read back, {name}, p99 of {ORDERS}"), percentile(&ours, 99), peer(99));
    }
    Ok(())
}

fn orders(lab: &Lab) -> Result<Vec<Duration>> {
    let deployment = Deployment::new(&Settings::default())?;
    deployment.prepend("max_new_per_hour = 1000000")?;
    let agent = deployment.start_agent(&lab.wire)?;
    enforce(&deployment, &lab.wire, 1, &[(Family::V4, "tcp", RUN)])?;
    for sequence in 2..ORDERS + 2 {
        let mut body = order(sequence, &[(Family::V4, "tcp", INGRESS)]);
        if sequence % 2 == 1 {
            body["findings"] = json!([]);
            body["allow"] = json!(["80/tcp", "8080/tcp"]);
        }
        let response = send(&deployment, &lab.wire, &body)?;
        ensure!(response.status == 200, "{}", response.text);
    }
    let log = agent.log();
    ensure!(!log.contains("in_force=false"), "an order was not carried out:\n{log}");
    let mut times = log
        .split("elapsed_us=")
        .skip(2)
        .map(|rest| {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            Ok(Duration::from_micros(digits.parse().with_context(|| format!("no figure in {rest:.40}"))?))
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(times.len() as u64 == ORDERS, "{} figures for {ORDERS} orders", times.len());
    times.sort();
    Ok(times)
}

/// `iptables-save | sed | iptables-restore`, then its two rules in DOCKER-USER.
fn script(wire: &Wire, backend: Backend) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..SCRIPT_RUNS {
        let started = Instant::now();
        let saved = run(&mut wire.node.command(backend.tool("iptables", "-save")))?;
        let narrowed: String = saved.lines().map(|line| narrow(line) + "\n").collect();
        run_with_input(&mut wire.node.command(backend.tool("iptables", "-restore")), &narrowed)?;
        for port in ["80", "443"] {
            let mut insert = wire.node.command(backend.tool("iptables", ""));
            insert.args(["-I", "DOCKER-USER", "-p", "tcp", "--dport", port, "-j", "ACCEPT"]);
            run(&mut insert)?;
        }
        times.push(started.elapsed());
    }
    times.sort();
    Ok(times)
}

fn narrow(line: &str) -> String {
    match line.strip_suffix(" -j ACCEPT") {
        Some(rule) if line.starts_with("-A DOCKER-INGRESS") && rule.contains("--dport") && !rule.contains(" -s ") => {
            format!("{rule} -s 172.16.0.0/12 -j ACCEPT")
        }
        _ => line.to_owned(),
    }
}
