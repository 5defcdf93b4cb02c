//! `run`: the daemon.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use deadlight_shared::hint::{self, HintExt as _};
use deadlight_shared::wire::Mode;
use deadlight_shared::{Identity, log};
use futures_util::future::Either;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::enroll::{enroll_once, keyring};
use super::keep::keep;
use crate::api::{Caller, Server, Slots, router};
use crate::config::{Config, Pull};
use crate::firewall::{Change, Linux};
use crate::identity::Document;
use crate::metrics::Exporter;
use crate::node::Node;

pub(super) async fn run(config: Config, enroll_file: Option<&Path>) -> anyhow::Result<ExitCode> {
    log::init("info");
    if let Some(file) = enroll_file {
        enroll_once(&config, file).await?;
    }
    Document::sweep(&config.state_dir);
    let keyring = Arc::new(keyring(&config)?);
    let Identity::Agent(name) = keyring.identity() else {
        bail!("the certificate is a scanner's; an agent needs one of its own");
    };
    if let Some(configured) = config.node.as_ref().filter(|configured| **configured != name) {
        bail!("the configuration says node {configured}, the certificate says {name}");
    }
    if let Err(error) = config.operator() {
        tracing::error!("{}: allowlists open nothing meanwhile", hint::line(&error));
    }
    let (listen, pull, mode) = (config.listen, config.pull.clone(), config.mode);
    let (docker_socket, scanners, metrics) =
        (config.docker_socket.clone(), config.scanners.clone(), config.metrics.clone());
    let node = Arc::new(Node::new(name, config, Box::new(Linux)));
    match node.arm().await {
        Ok(written) => {
            written.iter().flat_map(Change::lines).for_each(|line| tracing::info!(line, "guard in place"));
        }
        Err(error) => tracing::error!("{}", hint::line(&error)),
    }
    if mode == Mode::Observe && !scanners.is_empty() {
        tracing::warn!("observe mode writes no rule: everybody reaches {listen} until mode = \"enforce\"");
    }
    let slots = Slots::new(scanners);
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    let exporter = metrics.map(|metrics| {
        let exporter = Exporter::new(Arc::clone(&node), Arc::clone(&keyring), slots.clone());
        tokio::spawn(exporter.serve(metrics.listen))
    });
    let routes = router(Arc::clone(&node), Arc::clone(&keyring), slots.clone());
    let serving = match pull {
        Some(Pull { scanners }) => {
            tracing::info!(node = %node.name(), %mode, ?scanners, "agent started; it does not listen");
            Either::Left(Caller::new(scanners, keyring.calls(), routes).run(stop))
        }
        None => {
            let server = Server::bind(listen, keyring.tls(), routes, slots).hint(
                "`listen` must be an address of this node that nobody else listens on; `ss -lntp` shows who does",
            )?;
            tracing::info!(node = %node.name(), %mode, %listen, "agent started");
            Either::Right(server.run(stop))
        }
    };
    let keeping = tokio::spawn(keep(node, docker_socket));
    serving.await;
    keeping.abort();
    exporter.iter().for_each(JoinHandle::abort);
    tracing::info!("agent stopped; its rules stay");
    Ok(ExitCode::SUCCESS)
}
