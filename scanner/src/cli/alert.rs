//! `alert`: the places that alerts are sent to.

use std::path::Path;

use clap::{Args, Subcommand};
use deadlight_shared::hint::{HintExt as _, causes, render};
use deadlight_shared::{Finding, FindingId};
use jiff::Timestamp;
use reqwest::Url;

use super::check::{self, ConfigFile, today};
use super::{Exit, Failure, print};
use crate::alert::{Alert, Episode, Heartbeat, Kind, Manner, Post, Sink, Template, Words};
use crate::assess::first_seen;
use crate::config::{Config, MannerConfig, SinkConfig, UrlSource, sink_url};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Send a test to each place, and say what came of it
    Test(Arguments),
}

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
}

pub(super) async fn run(command: Command) -> Result<Exit, Failure> {
    let Command::Test(arguments) = command;
    let now = Timestamp::now();
    let config = check::load(&arguments.file.config, today(now))?;
    let sinks = sinks(&config)?;
    if sinks.is_empty() {
        return Err("the configuration has no [[alert]]".into());
    }
    let alert = test_alert(&config, now);
    let mut failed = 0;
    for sink in &sinks {
        let text = match sink.send(std::slice::from_ref(&alert), now).await {
            Ok(()) => format!("{}: accepted\n", sink.name),
            Err(error) => {
                failed += 1;
                format!("{}: {}\n", sink.name, render(&error).trim_start_matches("error: "))
            }
        };
        print(&text)?;
    }
    match failed {
        0 => Ok(Exit::Fine),
        _ => Err(format!("{failed} of {} places did not accept the test", sinks.len()).into()),
    }
}

/// The places that are configured, each with its URL read.
pub(super) fn sinks(config: &Config) -> Result<Vec<Sink>, Failure> {
    let mut sinks = Vec::new();
    for sink in &config.sinks {
        let url = url(&sink.url, |text| sink.url(text).map_err(Failure::from))?;
        let made = Sink::new(sink.name.clone(), manner(sink, config)?, url, config.vantage.clone());
        sinks.push(made.map_err(|error| format!("[[alert]] {}: {}", sink.name, causes(&error)))?);
    }
    Ok(sinks)
}

/// The place for signs of life, if there is one.
pub(super) fn heartbeat(config: &Config) -> Result<Option<Heartbeat>, Failure> {
    let Some(source) = &config.heartbeat else { return Ok(None) };
    let wrong = || Failure::from("[heartbeat]: that is no URL that signs of life may be sent to");
    let made = Heartbeat::new(url(source, |text| sink_url(text).ok_or_else(wrong))?);
    Ok(Some(made.map_err(|error| format!("[heartbeat]: {}", causes(&error)))?))
}

/// How `sink` is spoken to, with its files read.
fn manner(sink: &SinkConfig, config: &Config) -> Result<Manner, Failure> {
    Ok(match &sink.manner {
        MannerConfig::Webhook { template: None } => Manner::Http(Words::Webhook(None)),
        MannerConfig::Webhook { template: Some(path) } => {
            let source = std::fs::read_to_string(path);
            let source = source
                .map_err(|error| format!("[[alert]] {}: failed to read {}: {error}", sink.name, path.display()))
                .hint("template_file names a file with the JSON to send, relative to the configuration")?;
            let template = Template::new(source, &config.vantage, &test_alert(config, Timestamp::now()));
            Manner::Http(Words::Webhook(Some(
                template.map_err(|error| format!("[[alert]] {}: {}: {}", sink.name, path.display(), causes(&error)))?,
            )))
        }
        MannerConfig::Slack => Manner::Http(Words::Slack),
        MannerConfig::Alertmanager => Manner::Http(Words::Alertmanager),
        MannerConfig::Pagerduty { key } => Manner::Http(Words::Pagerduty {
            key: read(key).hint("key_file names a file with the integration key and nothing else in it")?,
        }),
        MannerConfig::Email { from, to, password } => {
            let password = password
                .as_deref()
                .map(|path| read(path).hint("password_file names a file with the password and nothing else in it"));
            Manner::Email(Post { from: from.clone(), to: to.clone(), password: password.transpose()? })
        }
    })
}

fn url(source: &UrlSource, check: impl Fn(&str) -> Result<Url, Failure>) -> Result<Url, Failure> {
    match source {
        UrlSource::Given(url) => Ok(url.clone()),
        UrlSource::File(path) => check(&read(path).hint("url_file names a file with the URL and nothing else in it")?),
    }
}

/// A secret in a file of its own.
fn read(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("failed to read {}: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("{} is empty", path.display())),
        text => Ok(text.to_owned()),
    }
}

/// It says of itself that it is one, and is over as soon as it is told.
fn test_alert(config: &Config, now: Timestamp) -> Alert {
    let (node, address, port) = (&config.nodes[0].name, config.nodes[0].addresses[0], config.ports.iter().next());
    let port = port.unwrap_or(deadlight_shared::Port {
        protocol: deadlight_shared::Protocol::Tcp,
        number: std::num::NonZeroU16::MIN,
    });
    let id = FindingId::of(node, address, port);
    let service = Some("this is a test of Deadlight, nothing is open".to_owned());
    let finding = Finding { service, ..first_seen(&id, node.clone(), address, port, now) };
    // No two tests are the same to whoever drops what comes twice.
    let number = u64::try_from(now.as_second()).unwrap_or(0);
    let episode = Episode::new(number, now);
    Alert { number, at: now, kind: Kind::Test, episode, finding, why: None }
}
