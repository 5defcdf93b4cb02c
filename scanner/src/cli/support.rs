//! `support-bundle`: all that somebody who helps has to know, without secrets.

use std::fs;
use std::path::Path;

use clap::Args;
use deadlight_shared::hint::causes;
use jiff::Timestamp;
use reqwest::Url;
use serde::Serialize;
use serde_json::{Value, json};
use toml::Table;

use super::check::{self, ConfigFile, today};
use super::past::write_json;
use super::{Exit, Failure, doctor};
use crate::config::Config;
use crate::store::{Database, Past};
use crate::view::Status;

/// Full sweeps and days of history that are told.
const SWEEPS: u32 = 50;
const DAYS: i64 = 7;
/// Changes that are told, the last ones.
const EVENTS: usize = 1_000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
}

/// Each part stands for itself: what cannot be had says why.
pub(super) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let checked = check::everything(&arguments.file.config, today(now));
    let (doctor, memory) = match &checked {
        Ok(checked) => (part(doctor::examined(&checked.config, now).await), part(memory(&checked.config, now).await)),
        Err(error) => (trouble(error.as_ref()), trouble(error.as_ref())),
    };
    write_json(&json!({
        "schema": "deadlight.support/v1",
        "note": "no key, password or token; but names, addresses and open ports of the nodes: read it before it is sent",
        "version": env!("CARGO_PKG_VERSION"),
        "at": now,
        "system": system(),
        "configuration": part(configuration(&arguments.file.config)),
        "doctor": doctor,
        "memory": memory,
    }))?;
    Ok(Exit::Fine)
}

fn part<T: Serialize>(result: Result<T, Failure>) -> Value {
    match result.and_then(|value| Ok(serde_json::to_value(value)?)) {
        Ok(value) => value,
        Err(error) => trouble(error.as_ref()),
    }
}

fn trouble(error: &(dyn std::error::Error + 'static)) -> Value {
    json!({ "error": causes(error) })
}

fn system() -> Value {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let release = read("/etc/os-release").and_then(|text| {
        let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(name.trim_matches('"').to_owned())
    });
    json!({ "release": release, "kernel": read("/proc/sys/kernel/osrelease") })
}

fn configuration(path: &Path) -> Result<Table, Failure> {
    let mut table: Table = deadlight_shared::config::load(path)?;
    table.iter_mut().for_each(|(key, value)| leave_secrets_out(key, value));
    Ok(table)
}

/// Of each URL only where it leads: in the rest there can be a password or a token, and so in what may be meant as one.
fn leave_secrets_out(key: &str, value: &mut toml::Value) {
    let is_secret =
        ["password", "secret", "token", "key"].iter().any(|word| key.contains(word)) && !key.ends_with("_file");
    match value {
        toml::Value::String(text) => {
            let url = text.trim().parse::<Url>().ok().filter(Url::has_host);
            if let Some(url) = url {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                *text = format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default());
            } else if is_secret
                || key.contains("url") && !key.ends_with("_file") && !text.starts_with("sqlite:")
                || text.contains("://")
                || text.contains('@')
            {
                "left out".clone_into(text);
            }
        }
        toml::Value::Array(values) => values.iter_mut().for_each(|value| leave_secrets_out(key, value)),
        toml::Value::Table(table) => table.iter_mut().for_each(|(key, value)| leave_secrets_out(key, value)),
        _ => {}
    }
}

async fn memory(config: &Config, now: Timestamp) -> Result<Value, Failure> {
    let database = Database::open_existing(&config.store, &config.vantage).await?;
    let past = Past(&database);
    let state = database.load_all().await?;
    let coverage = past.coverage(&config.vantage, now).await?;
    let mut events = past.events(now.checked_sub(jiff::SignedDuration::from_hours(24 * DAYS))?, now).await?;
    events.drain(..events.len().saturating_sub(EVENTS));
    let events: Vec<Value> =
        events.iter().map(|(finding, event)| json!({ "finding": finding.id, "event": event })).collect();
    let remembered = json!({
        "location": database.location().to_string(),
        "status": Status::new(&state, coverage, config, now),
        "findings": state.findings,
        "sweeps": past.sweeps(&config.vantage, SWEEPS).await?,
        "sinks": past.sinks(&config.vantage).await?,
        "silences": past.silences(now).await?,
        "events": events,
    });
    database.close().await;
    Ok(remembered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_url_only_the_host_is_left() {
        for (key, text, wanted) in [
            ("url", "hooks.example.net/services/T0/B0/s3cret", "left out"),
            ("url", "postgres:user=x password=s3cret", "left out"),
            ("password", "s3cret", "left out"),
            ("tokens", "s3cret", "left out"),
            ("token_file", "web.token", "web.token"),
            ("url", "https://hooks.example.net/services/T0/B0/s3cret", "https://hooks.example.net"),
            ("url", "https://user:s3cret@[2001:db8::1]:8443/x?y=s3cret#s3cret", "https://[2001:db8::1]:8443"),
            ("url", "smtps://me:s3cret@mail.example.net", "smtps://mail.example.net"),
            ("url", "postgres:///deadlight?host=/run&password=s3cret", "left out"),
            ("url", "postgres://me:s3cret@db/deadlight", "postgres://db"),
            ("url", " https://[s3cret", "left out"),
            ("url", "sqlite:deadlight.db", "sqlite:deadlight.db"),
            ("tcp", "1-65535", "1-65535"),
        ] {
            let mut value = toml::Value::Array(vec![toml::Value::String(text.to_owned())]);
            leave_secrets_out(key, &mut value);
            assert_eq!(value[0].as_str(), Some(wanted));
        }
    }
}
