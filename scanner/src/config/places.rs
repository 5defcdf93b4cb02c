//! Where signs of life are sent, where the page is, and which URLs may be sent to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;

use super::{ConfigError, file};
use crate::store::is_near;

/// Where the page is, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The file with the word that a reader has to know. Without one, only this host can ask.
    pub token: Option<PathBuf>,
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
pub(super) fn url_source(
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

/// A URL that alerts may be sent to: https; or http to an address that no stranger listens in on.
pub fn sink_url(text: &str) -> Option<Url> {
    let url: Url = text.trim().parse().ok()?;
    let is_near = is_near(url.host_str()?);
    (url.scheme() == "https" || url.scheme() == "http" && is_near).then_some(url)
}
