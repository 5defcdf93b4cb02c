//! Where alerts are sent, and how each place is spoken to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lettre::message::Mailbox;
use reqwest::Url;

use super::places::{UrlSource, mail_url, sink_url, url_source};
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
    /// JSON of our own, or of the template in a file.
    Webhook {
        /// The file.
        template: Option<PathBuf>,
    },
    /// Slack.
    Slack,
    /// Alertmanager.
    Alertmanager,
    /// PagerDuty.
    Pagerduty {
        /// The file with the routing key.
        key: PathBuf,
    },
    /// A mail server.
    Email {
        /// The sender.
        from: Mailbox,
        /// The recipients; at least one.
        to: Vec<Mailbox>,
        /// The file with the password of the user in the URL.
        password: Option<PathBuf>,
    },
}

impl SinkConfig {
    /// The URL that `text` is, if this place may be spoken to there.
    pub fn url(&self, text: &str) -> Result<Url, ConfigError> {
        url_of(&self.name, &self.manner, text)
    }
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
    let name = alert.name.as_ref().map_or_else(|| alert.kind.as_str().to_owned(), ToString::to_string);
    let kind = alert.kind;
    for (key, is_there, taker) in [
        ("key_file", alert.key_file.is_some(), SinkKind::Pagerduty),
        ("template_file", alert.template_file.is_some(), SinkKind::Webhook),
        ("password_file", alert.password_file.is_some(), SinkKind::Email),
        ("from", alert.from.is_some(), SinkKind::Email),
        ("to", alert.to.is_some(), SinkKind::Email),
    ] {
        if is_there && kind != taker {
            return Err(ConfigError::SinkKey { name, kind: taker, key });
        }
    }
    let needs = |key| ConfigError::SinkNeeds { name: name.clone(), kind, key };
    let mailbox = |key, text: String| match text.parse::<Mailbox>() {
        Ok(mailbox) if mailbox.email.to_string().is_ascii() && !text.contains(char::is_control) => Ok(mailbox),
        _ => Err(ConfigError::Mailbox { name: name.clone(), key, text }),
    };
    let manner = match kind {
        SinkKind::Webhook => MannerConfig::Webhook { template: alert.template_file.map(|file| directory.join(file)) },
        SinkKind::Slack => MannerConfig::Slack,
        SinkKind::Alertmanager => MannerConfig::Alertmanager,
        SinkKind::Pagerduty => {
            MannerConfig::Pagerduty { key: directory.join(alert.key_file.ok_or_else(|| needs("key_file"))?) }
        }
        SinkKind::Email => {
            let to = alert.to.filter(|to| !to.is_empty()).ok_or_else(|| needs("to"))?;
            MannerConfig::Email {
                from: mailbox("from", alert.from.ok_or_else(|| needs("from"))?)?,
                to: to.into_iter().map(|to| mailbox("to", to)).collect::<Result<_, _>>()?,
                password: alert.password_file.map(|file| directory.join(file)),
            }
        }
    };
    let is_known = kind == SinkKind::Pagerduty && alert.url_file.is_none();
    let url = alert.url.or_else(|| is_known.then(|| PAGERDUTY.to_owned()));
    let read = |text: &str| url_of(&name, &manner, text);
    let url = url_source(&place(&name), url, alert.url_file, directory, read)?;
    Ok(SinkConfig { name, manner, url })
}

fn url_of(name: &str, manner: &MannerConfig, text: &str) -> Result<Url, ConfigError> {
    let MannerConfig::Email { password, .. } = manner else {
        return sink_url(text).ok_or_else(|| ConfigError::Scheme(place(name)));
    };
    let url = mail_url(text).ok_or_else(|| ConfigError::MailScheme(place(name)))?;
    match url.username().is_empty() == password.is_none() {
        true => Ok(url),
        false => Err(ConfigError::SinkLogin(name.to_owned())),
    }
}

fn place(name: &str) -> String {
    format!("[[alert]] {name}")
}
