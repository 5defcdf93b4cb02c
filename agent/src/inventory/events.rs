//! What Docker tells by itself: that networks, services or nodes of the swarm have changed. A firewall that
//! announces its changes tells more and sooner, but iptables-legacy does not.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::query_parameters::EventsOptions;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::docker;

/// Containers are left out: their health checks are events as well, and whoever gets a port gets a network.
const KINDS: [&str; 3] = ["network", "service", "node"];
/// An engine that restarts is away for some seconds.
const AGAIN: Duration = Duration::from_secs(2);

/// Begins to listen to the engine behind `socket`, and goes on until nobody receives. Changes that nobody has
/// taken yet count as one; an engine that comes back counts as changed.
pub fn watch(socket: PathBuf) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while !sender.is_closed() {
            listen(&socket, &sender).await;
            tokio::time::sleep(AGAIN).await;
        }
    });
    receiver
}

/// Returns when the engine goes away.
async fn listen(socket: &std::path::Path, sender: &mpsc::Sender<()>) {
    let Ok(docker) = docker::client(socket) else { return };
    if docker.ping().await.is_err() {
        return;
    }
    // Where the channel is full, somebody is about to look already.
    sender.try_send(()).ok();
    let filters = HashMap::from([("type".to_owned(), KINDS.map(str::to_owned).into())]);
    let mut events = docker.events(Some(EventsOptions { filters: Some(filters), ..EventsOptions::default() }));
    while let Some(event) = events.next().await {
        match event {
            Ok(_) => _ = sender.try_send(()),
            Err(error) => return tracing::debug!(%error, "docker's events end"),
        }
    }
}
