//! What is behind an open TCP port.

use std::net::IpAddr;
use std::time::Duration;

use deadlight_shared::Port;

use crate::net;
use crate::probe::Outcome;

/// What a second look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// What came of the handshake.
    pub outcome: Outcome,
    /// What is behind the port, as far as it says so itself.
    pub service: Option<String>,
}

/// One handshake.
pub async fn look(address: IpAddr, port: Port, _identify: bool, limit: Duration) -> Looked {
    Looked { outcome: net::ask(address, port, &[], limit).await.outcome, service: None }
}
