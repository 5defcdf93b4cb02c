//! What a peer's bytes make the agent answer, for `tests/fuzz`: nobody else uses it.

use std::net::SocketAddr;

use axum::Router;
use deadlight_shared::Identity;
use deadlight_shared::enrol::EXPORTER_LENGTH;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::connection::{Channel, Peer, answer};

/// The answer to `bytes` of a peer that has proven to be `identity` and sends no more.
pub async fn answered(bytes: &[u8], identity: Identity, router: Router) -> Vec<u8> {
    let (mut ours, theirs) = tokio::io::duplex(64 << 10);
    let (address, channel) = (SocketAddr::from(([198, 51, 100, 1], 40_000)), Channel([0; EXPORTER_LENGTH]));
    let peer = Peer { address, identity, channel };
    let asking = async {
        // A server that hangs up early has said what it had to say.
        ours.write_all(bytes).await.ok();
        ours.shutdown().await.ok();
        let mut said = Vec::new();
        ours.read_to_end(&mut said).await.ok();
        said
    };
    let (said, ()) = tokio::join!(asking, answer(theirs, peer, router));
    said
}
