//! The real Alertmanager of Debian's, on loopback.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{process::run, scratch, wait::wait_for};

const SOON: Duration = Duration::from_secs(30);

/// The server; it ends with this.
#[derive(Debug)]
pub struct Alertmanager {
    port: u16,
    server: Child,
    _directory: TempDir,
}

impl Alertmanager {
    /// Starts one that tells nobody.
    pub fn start() -> Result<Self> {
        Self::start_with("route:\n  receiver: nobody\nreceivers:\n  - name: nobody\n")
    }

    /// Starts one that tells a webhook of each name by itself, as soon as it does by default.
    pub fn telling(url: &str) -> Result<Self> {
        Self::start_with(&format!(
            "route:\n  receiver: webhook\n  group_by: [alertname]\nreceivers:\n  - name: webhook\n    \
             webhook_configs:\n      - url: {url}\n"
        ))
    }

    fn start_with(configuration: &str) -> Result<Self> {
        let directory = scratch::directory()?;
        let config = directory.path().join("alertmanager.yml");
        fs::write(&config, configuration)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "prometheus-alertmanager"])
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log"))?)
            .spawn()
            .context("start prometheus-alertmanager\nhint: tests/install.sh")?;
        let server = Self { port, server, _directory: directory };
        wait_for("Alertmanager", SOON, || server.alerts().map(drop).map_err(|error| format!("{error:#}")))?;
        Ok(server)
    }

    /// Where it listens, at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it holds for true now.
    pub fn alerts(&self) -> Result<Vec<Value>> {
        let url = format!("http://127.0.0.1:{}/api/v2/alerts", self.port);
        Ok(serde_json::from_str(&run(Command::new("curl").args(["-fsS", "--noproxy", "*", &url]))?)?)
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        if let Err(error) = self.server.kill().and_then(|()| self.server.wait()) {
            eprintln!("Alertmanager is still there: {error}");
        }
    }
}
