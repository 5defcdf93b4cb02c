//! Where alerts and signs of life are sent, and where the page is.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;

use super::{ConfigError, file};
use crate::alert::SinkKind;
use crate::store::is_near;

/// Where PagerDuty takes events.
pub(super) const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

/// Where the page is, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The file with the word that a reader has to know. Without one, only this host can ask.
    pub token: Option<PathBuf>,
}

/// Somewhere that alerts are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Its name: that of its kind where there is no other.
    pub name: String,
    /// How it is spoken to.
    pub kind: SinkKind,
    /// Where its URL stands, which is a secret: whoever knows it can speak there.
    pub url: UrlSource,
    /// The file with PagerDuty's routing key.
    pub key: Option<PathBuf>,
}

/// A URL, or the file that it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlSource {
    /// In the configuration itself.
    Given(Url),
    /// In a file, read when it is needed.
    File(PathBuf),
}

pub(super) fn checked_web(web: file::Web, directory: &Path) -> Result<WebConfig, ConfigError> {
    let file::Web { listen, token_file } = web;
    match (listen.ip().is_loopback(), &token_file) {
        (false, None) => Err(ConfigError::WebToken(listen)),
        _ => Ok(WebConfig { listen, token: token_file.map(|file| directory.join(file)) }),
    }
}

pub(super) fn checked_heartbeat(heartbeat: file::Heartbeat, directory: &Path) -> Result<UrlSource, ConfigError> {
    url_source("[heartbeat]".to_owned(), heartbeat.url, heartbeat.url_file, directory)
}

/// The URL of `place`, which stands in the configuration or in a file.
fn url_source(
    place: String,
    url: Option<String>,
    file: Option<PathBuf>,
    directory: &Path,
) -> Result<UrlSource, ConfigError> {
    match (url, file) {
        (Some(url), None) => sink_url(&url).map(UrlSource::Given).ok_or(ConfigError::Scheme(place)),
        (None, Some(file)) => Ok(UrlSource::File(directory.join(file))),
        _ => Err(ConfigError::Url(place)),
    }
}

pub(super) fn checked_sinks(sinks: Vec<file::Alert>, directory: &Path) -> Result<Vec<SinkConfig>, ConfigError> {
    let mut names = BTreeSet::new();
    let checked = |sink: file::Alert| {
        let name = sink.name.map_or_else(|| sink.kind.as_str().to_owned(), |name| name.to_string());
        if (sink.kind == SinkKind::Pagerduty) != sink.key_file.is_some() {
            return Err(ConfigError::SinkKey(name));
        }
        let given = sink
            .url
            .or_else(|| (sink.kind == SinkKind::Pagerduty && sink.url_file.is_none()).then(|| PAGERDUTY.to_owned()));
        let url = url_source(format!("[[alert]] {name}"), given, sink.url_file, directory)?;
        match names.insert(name.clone()) {
            true => Ok(SinkConfig { name, kind: sink.kind, url, key: sink.key_file.map(|file| directory.join(file)) }),
            false => Err(ConfigError::SameSink(name)),
        }
    };
    sinks.into_iter().map(checked).collect()
}

/// A URL that alerts may be sent to: https; or http to an address that no stranger listens in on.
pub fn sink_url(text: &str) -> Option<Url> {
    let url: Url = text.trim().parse().ok()?;
    let is_near = is_near(url.host_str()?);
    (url.scheme() == "https" || url.scheme() == "http" && is_near).then_some(url)
}
