//! The sign of life: whoever does not get it in time knows that nobody looks any more, or that alerts do not arrive.

use jiff::Timestamp;
use reqwest::{Client, Url};
use serde::Serialize;

use super::sink::{SinkError, client, post};
use crate::store::Swept;

/// Where it is sent. The URL is a secret and is never shown.
pub struct Heartbeat {
    url: Url,
    client: Client,
}

/// One sign, as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Beat {
    schema: &'static str,
    vantage: String,
    started: Timestamp,
    finished: Timestamp,
    complete: bool,
    targets: u64,
    probes: u64,
    open: usize,
}

impl Beat {
    /// Of a full sweep whose round is over and kept.
    pub fn of(vantage: String, swept: &Swept) -> Self {
        Self {
            schema: "deadlight.heartbeat/v1",
            vantage,
            started: swept.started,
            finished: swept.finished,
            complete: swept.is_complete(),
            targets: swept.tally.targets,
            probes: swept.tally.probes_sent,
            open: swept.ending.open,
        }
    }
}

impl Heartbeat {
    /// One that is sent to `url`.
    pub fn new(url: Url) -> Result<Self, SinkError> {
        Ok(Self { client: client(&url)?, url })
    }

    /// Sends it; it has arrived only when somebody says so.
    pub async fn send(&self, beat: &Beat) -> Result<(), SinkError> {
        post(self.client.post(self.url.clone()).json(beat)).await
    }
}
