//! Packets past the kernel's own network stack: sent to a link, captured as they come in.
//!
//! Packets leave through packet sockets, so the sweep fills no connection table of this host, and no
//! firewall rule of it holds them back. They are captured the same way, before any netfilter rule, so
//! that this host's own firewall cannot blind the scanner. The kernel sees the answers as well, finds
//! no connection they belong to, and resets every half-open one: that is harmless, and frees the
//! target of it. The source ports are bound for as long as the sweep lasts, so that no program of
//! this host mistakes an answer for its own.

mod capture;
mod filter;
mod ports;
mod sender;
mod sys;

use std::io;

pub use capture::Capture;
pub use ports::SourcePorts;
pub use sender::{Frame, Sender};

/// Packets handed to the kernel, or taken from it, in one call.
pub const BATCH: usize = 64;

/// Closes sockets without waiting for it. The kernel makes each close of a packet socket wait until no
/// processor uses it any more, some 10 ms; side by side these waits cost one.
pub fn close(capture: Capture, senders: impl Iterator<Item = Sender>) {
    for socket in capture.into_sockets().into_iter().chain(senders.map(Sender::into_socket)) {
        std::thread::spawn(move || drop(socket));
    }
}

/// Why packets cannot be sent and captured.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// No CAP_NET_RAW.
    #[error("packet sockets need root or CAP_NET_RAW")]
    Forbidden,
    /// The system refuses for another reason.
    #[error("failed to {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl RawError {
    fn of(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::System { operation, source },
        }
    }
}
