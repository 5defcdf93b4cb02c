//! `run`: the daemon.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use deadlight_shared::hint::{self, HintExt as _};
use deadlight_shared::tls::Credentials;
use deadlight_shared::{Identity, log};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::keep::keep;
use crate::api::{Server, router};
use crate::config::Config;
use crate::firewall::{Change, Linux};
use crate::node::Node;

pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    log::init("info");
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
    let (listen, mode, docker_socket) = (config.listen, config.mode, config.docker_socket.clone());
    let node = Arc::new(Node::new(name, config, Box::new(Linux)));
    match node.arm().await {
        Ok(written) => {
            written.iter().flat_map(Change::lines).for_each(|line| tracing::info!(line, "guard in place"));
        }
        Err(error) => tracing::error!("{}", hint::line(&error)),
    }
    let (_tls, tls) = watch::channel(Arc::new(credentials.server_config().context("failed to set up TLS")?));
    let server = Server::bind(listen, tls, router(Arc::clone(&node)))
        .await
        .hint("`listen` must be an address of this node that nobody else listens on; `ss -lntp` shows who does")?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    tracing::info!(node = %node.name(), %mode, %listen, "agent started");
    let keeping = tokio::spawn(keep(node, docker_socket));
    server.run(stop).await;
    keeping.abort();
    tracing::info!("agent stopped; its rules stay");
    Ok(ExitCode::SUCCESS)
}
