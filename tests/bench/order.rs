//! From "order received" to "rules read back", as the agent logs it, among many rules of somebody else's, beside the
//! known fix script.
//! Every order changes the kernel: 8080 is closed and tightened, or opened again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{Backend, ForwardPolicy, Layout},
    fix_script,
    lab::{Family, INGRESS, Lab, RUN, Wire},
    netns::Netns,
    order::{enforce, order, send},
    process::run_with_input,
};
use serde_json::json;

use crate::{percentile, row};

const ORDERS: u64 = 300;
/// In each family.
const FOREIGN: u16 = 500;
const SCRIPT_RUNS: usize = 100;

pub(crate) fn measure() -> Result<()> {
    for backend in [Backend::Nft, Backend::Legacy] {
        let lab = Lab::new(Layout::V28, backend, ForwardPolicy::Drop)?;
        foreign(lab.node(), backend)?;
        let ours = orders(&lab)?;
        let script = script(&lab.wire, backend)?;
        for percent in [50, 99] {
            let what = format!(
                "order to read back, {FOREIGN} foreign rules in each family, {backend}, p{percent} of {ORDERS}"
            );
            row(&what, percentile(&ours, percent), Some(("fix script", percentile(&script, percent))));
        }
    }
    Ok(())
}

/// An operator's own chain, which all that enters or crosses the node goes through.
fn foreign(node: &Netns, backend: Backend) -> Result<()> {
    for (tool, source) in [("iptables", "203.0.113."), ("ip6tables", "2001:db8:99::")] {
        let rules: String = (0..FOREIGN)
            .map(|number| {
                let (host, port) = (number % 250, 30_000 + number);
                format!("-A OPERATOR -s {source}{host} -p tcp -m tcp --dport {port} -j DROP\n")
            })
            .collect();
        let jumps = "-I INPUT -j OPERATOR\n-I FORWARD -j OPERATOR\n";
        let script = format!("*filter\n:OPERATOR - [0:0]\n{rules}{jumps}COMMIT\n");
        run_with_input(node.command(backend.tool(tool, "-restore")).arg("--noflush"), &script)?;
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

fn script(wire: &Wire, backend: Backend) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..SCRIPT_RUNS {
        let started = Instant::now();
        fix_script::run_once(backend, |tool| wire.node.command(tool))?;
        times.push(started.elapsed());
    }
    times.sort();
    Ok(times)
}
