//! An error as the agent answers it: RFC 9457 problem details.

use serde::{Deserialize, Serialize};

/// Body of every answer that is not a success; content type `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Short name of the kind, the same for every occurrence.
    pub title: String,
    /// HTTP status code.
    pub status: u16,
    /// What is wrong this time.
    pub detail: String,
}

impl Problem {
    /// The field of the body that the agent does not know, where that is why it refuses it: it is older than whoever asks.
    pub fn unknown_field(&self) -> Option<&str> {
        self.detail.strip_prefix("unknown field `")?.split('`').next()
    }
}
