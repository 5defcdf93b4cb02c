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
    let place = "[heartbeat]".to_owned();
    let read = |url: &str| sink_url(url).ok_or_else(|| ConfigError::Scheme(place.clone()));
    url_source(&place, heartbeat.url, heartbeat.url_file, directory, read)
}

/// The URL of `place`, which stands in the configuration, as `read` takes it, or in a file.
pub(super) fn url_source(
    place: &str,
    url: Option<String>,
    file: Option<PathBuf>,
    directory: &Path,
    read: impl Fn(&str) -> Result<Url, ConfigError>,
) -> Result<UrlSource, ConfigError> {
    match (url, file) {
        (Some(url), None) => read(&url).map(UrlSource::Given),
        (None, Some(file)) => Ok(UrlSource::File(directory.join(file))),
        _ => Err(ConfigError::Url(place.to_owned())),
    }
}

/// A URL that alerts may be sent to: https; or http to an address that no stranger listens in on.
pub fn sink_url(text: &str) -> Option<Url> {
    let url: Url = text.trim().parse().ok()?;
    let is_near = is_near(url.host_str()?);
    (url.scheme() == "https" || url.scheme() == "http" && is_near).then_some(url)
}

/// A URL of a mail server: smtps or smtp, with no more than a user, a host and a port.
pub(super) fn mail_url(text: &str) -> Option<Url> {
    let url: Url = text.trim().parse().ok()?;
    let is_bare = url.path().trim_matches('/').is_empty() && url.query().is_none() && url.fragment().is_none();
    let is_server = matches!(url.scheme(), "smtps" | "smtp") && url.host_str().is_some_and(|host| !host.is_empty());
    (is_server && is_bare && url.password().is_none()).then_some(url)
}
