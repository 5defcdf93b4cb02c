//! `run`: the daemon.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use deadlight_shared::Identity;
use deadlight_shared::hint::{self, HintExt as _};
use deadlight_shared::tls::Credentials;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{Server, router};
use crate::config::Config;
use crate::firewall::{Change, Linux, legacy_in_use};
use crate::inventory::changes;
use crate::node::{Node, NodeError};

/// Where every change of the firewall is announced.
const EVERY_ANNOUNCED: Duration = Duration::from_secs(30);
/// Where iptables-legacy has tables.
const EVERY_SILENT: Duration = Duration::from_secs(4);
/// After an announced change Docker is asked as well, once its programs have written all they will.
const SETTLED: Duration = Duration::from_secs(1);
/// At start the network may not be there yet.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DEADLIGHT_LOG").unwrap_or_else(|_| "info".into());
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    let paths = config
        .tls
        .as_ref()
        .ok_or("the configuration has no [tls]")
        .hint("deadlight-scanner pki issue-agent NODE makes the files; --print-config shows the keys")?;
    let credentials = Credentials::load(paths).hint("deadlight-scanner pki issue-agent NODE; chmod 600 the key")?;
    let Identity::Agent(name) = credentials.identity().clone() else {
        bail!("{} is a scanner's certificate; an agent needs one of its own", paths.certificate.display());
    };
    if let Some(configured) = config.node.as_ref().filter(|configured| **configured != name) {
        bail!("the configuration says node {configured}, the certificate says {name}");
    }
    let (listen, mode) = (config.listen, config.mode);
    let node = Arc::new(Node::new(name, config, Box::new(Linux)));
    report("guard in place", node.arm().await);
    let server = Server::bind(listen, &credentials, router(Arc::clone(&node)))
        .await
        .hint("`listen` must be an address of this node that nobody else listens on; `ss -lntp` shows who does")?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    tracing::info!(node = %node.name(), %mode, %listen, "agent started");
    let keeping = tokio::spawn(keep(node));
    server.run(stop).await;
    keeping.abort();
    tracing::info!("agent stopped; its rules stay");
    Ok(ExitCode::SUCCESS)
}

/// Puts back what was lost: at once where the kernel announces the change, else at the next turn.
async fn keep(node: Arc<Node>) {
    let mut changes = changes::watch()
        .inspect_err(
            |error| tracing::warn!(%error, "changes of the firewall are not announced; looking every few seconds"),
        )
        .ok();
    let mut pause = Duration::ZERO;
    loop {
        let author = match &mut changes {
            Some(changes) => tokio::time::timeout(pause, changes.recv()).await.ok().flatten(),
            None => {
                tokio::time::sleep(pause).await;
                None
            }
        };
        pause = match author {
            Some(author) => {
                let kept = report(&format!("drift repaired, made by {author}"), node.restore().await);
                if kept { SETTLED } else { RETRY_AFTER }
            }
            None => match report("drift repaired", node.reconcile().await) {
                true if changes.is_some() && !legacy_in_use() => EVERY_ANNOUNCED,
                true => EVERY_SILENT,
                false => RETRY_AFTER,
            },
        };
    }
}

/// Logs what came of it; whether it went well.
fn report(what: &str, result: Result<Vec<Change>, NodeError>) -> bool {
    match &result {
        Ok(written) => written.iter().for_each(|change| tracing::warn!(%change, "{what}")),
        Err(error) => tracing::error!("{}", hint::render(error)),
    }
    result.is_ok()
}
