//! The agent's TLS as sslyze sees it, judged by Mozilla's "modern" configuration, its best grade.
//!
//! One thing is not as there, by design: the certificate names a node and no host, so no path of it validates for one.

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    deployment::{AGENT_PORT, Deployment, Settings},
    lab::{Family::V4, Wire},
    programs::finish,
};

const BY_DESIGN: &str = "* certificate_path_validation: ";

/// Every word of it for one who reads; fails when anything else is below the grade.
pub(crate) fn measure() -> Result<()> {
    let wire = Wire::new()?;
    let deployment = Deployment::new(&Settings { mode: "observe", ..Settings::default() })?;
    let _agent = deployment.start_agent(&wire)?;
    let program = std::env::var("SSLYZE").unwrap_or_else(|_| "sslyze".to_owned());
    let mut command = wire.inet.command(program);
    command.args(["--mozilla_config", "modern", "--certinfo_ca_file"]).arg(deployment.path("ca.crt"));
    let ended = finish(command.arg(V4.node(AGENT_PORT).to_string()))?;
    println!("{}{}", ended.stdout, ended.stderr);
    let (_, judgement) = ended.stdout.split_once("COMPLIANCE AGAINST TLS CONFIGURATION").context("no judgement")?;
    let faults: Vec<&str> = judgement.lines().map(str::trim).filter(|line| line.starts_with("* ")).collect();
    ensure!(judgement.contains("modern") && faults.len() == 1 && faults[0].starts_with(BY_DESIGN), "{faults:#?}");
    Ok(())
}
