//! What `docker/observability/` has for Prometheus and Grafana, and what Prometheus' own tool says.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// The folder.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/observability")
}

/// Demands that `text`, metrics of `program` (`scanner` or `agent`), is as Prometheus wants it, and that it has whatever
/// the alert rules and the dashboard ask for of that program.
pub fn check(program: &str, text: &str) -> Result<()> {
    promtool_takes(text)?;
    for file in ["rules.yml", "dashboard.json"] {
        let asked = asked_for(file)?;
        let ours: Vec<_> = asked.iter().filter(|name| name.starts_with(&format!("deadlight_{program}_"))).collect();
        ensure!(ours.len() >= 4, "{file}: {ours:?}");
        for name in ours {
            ensure!(text.contains(&format!("\n# TYPE {name} ")), "{file} asks for {name}, which there is not");
        }
    }
    Ok(())
}

/// The metrics of ours that `file` names; each is of one of the two programs.
fn asked_for(file: &str) -> Result<BTreeSet<String>> {
    let said = fs::read_to_string(directory().join(file))?;
    let words = said.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names: BTreeSet<_> = words.filter(|word| word.starts_with("deadlight_")).map(str::to_owned).collect();
    let strange =
        names.iter().find(|name| !["deadlight_scanner_", "deadlight_agent_"].iter().any(|it| name.starts_with(it)));
    ensure!(strange.is_none(), "{file} asks for {strange:?}");
    Ok(names)
}

fn promtool_takes(text: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start promtool\nhint: tests/install.sh")?;
    promtool.stdin.take().context("its input")?.write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
