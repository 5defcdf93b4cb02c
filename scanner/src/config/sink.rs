//! Where alerts are sent, and how each place is spoken to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::places::{UrlSource, url_source};
use super::{ConfigError, file};
use crate::alert::SinkKind;

/// Where PagerDuty takes events.
pub(super) const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

/// Somewhere that alerts are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Its name: that of its kind where there is no other.
    pub name: String,
    /// How it is spoken to.
    pub manner: MannerConfig,
    /// Where its URL stands, which is a secret: whoever knows it can speak there.
    pub url: UrlSource,
}

/// How a place is spoken to, with the files that this takes: they are read at each start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MannerConfig {
    /// JSON of our own.
    Webhook,
    /// Slack.
    Slack,
    /// Alertmanager.
    Alertmanager,
    /// PagerDuty.
    Pagerduty {
        /// The file with the routing key.
        key: PathBuf,
    },
}

pub(super) fn checked_sinks(sinks: Vec<file::Alert>, directory: &Path) -> Result<Vec<SinkConfig>, ConfigError> {
    let mut names = BTreeSet::new();
    let checked = |alert: file::Alert| {
        let sink = checked(alert, directory)?;
        match names.insert(sink.name.clone()) {
            true => Ok(sink),
            false => Err(ConfigError::SameSink(sink.name)),
        }
    };
    sinks.into_iter().map(checked).collect()
}

fn checked(alert: file::Alert, directory: &Path) -> Result<SinkConfig, ConfigError> {
    let file::Alert { name, kind, mut url, url_file, key_file } = alert;
    let name = name.map_or_else(|| kind.as_str().to_owned(), |name| name.to_string());
    let manner = match (kind, key_file) {
        (SinkKind::Pagerduty, Some(key)) => MannerConfig::Pagerduty { key: directory.join(key) },
        (SinkKind::Pagerduty, None) | (_, Some(_)) => return Err(ConfigError::SinkKey(name)),
        (SinkKind::Webhook, None) => MannerConfig::Webhook,
        (SinkKind::Slack, None) => MannerConfig::Slack,
        (SinkKind::Alertmanager, None) => MannerConfig::Alertmanager,
    };
    if kind == SinkKind::Pagerduty && url_file.is_none() {
        url = url.or_else(|| Some(PAGERDUTY.to_owned()));
    }
    let url = url_source(format!("[[alert]] {name}"), url, url_file, directory)?;
    Ok(SinkConfig { name, manner, url })
}
