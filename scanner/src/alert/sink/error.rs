//! Why a message did not arrive.

use deadlight_shared::text::printable;
use jiff::SignedDuration;
use reqwest::StatusCode;

/// Longest text of a sink that is shown.
const SHOWN: usize = 200;

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The HTTP client cannot be made.
    #[error("failed to set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The system's list of CAs cannot be used.
    #[error("failed to set up TLS")]
    Tls(#[from] rustls::Error),
    /// No answer came, or it broke off.
    #[error("failed to reach it")]
    Reach(#[source] reqwest::Error),
    /// It said no.
    #[error("it answered {status}: {}", printable(.said, SHOWN))]
    Said {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        said: String,
        /// How long it wants us to wait.
        retry_after: Option<SignedDuration>,
    },
}
