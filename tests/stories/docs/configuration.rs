//! Configuration as it is printed, beside what the programs read.

use std::{collections::BTreeSet, path::Path};

use deadlight_scanner::config::TEMPLATE;
use jiff::civil::date;
use toml::{Table, Value};

/// What a block may leave out, because the reader has it already.
const SCANNER: &str = r#"
[vantage]
id = "office-a"
[[node]]
name = "n1"
addresses = ["198.51.100.11"]
agent = "https://198.51.100.11:7443"
labels = ["edge"]
[[node]]
name = "n2"
addresses = ["198.51.100.12"]
agent = "https://198.51.100.12:7443"
[pki]
directory = "pki"
"#;

/// What is wrong with a block of TOML; its first line is a comment that begins with the file's name.
pub(super) fn wrong_in_block(block: &str) -> Option<String> {
    let file = block.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or_default();
    let file = file.split([' ', ':', ',']).next().unwrap_or_default();
    let result = match file {
        "scanner.toml" => scanner(block),
        "agent.toml" => deadlight_shared::config::parse::<deadlight_agent::config::Config>(block, Path::new(file))
            .map(drop)
            .map_err(|error| error.to_string()),
        _ => Err("the first line of a block of TOML is a comment with the file's name".to_owned()),
    };
    result.err().map(|error| format!("{error}\n{block}"))
}

fn scanner(block: &str) -> Result<(), String> {
    let mut said: Table = block.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let mut known: Table = SCANNER.parse().map_err(|error: toml::de::Error| error.to_string())?;
    if said.contains_key("tls") {
        known.remove("pki");
    }
    for (key, value) in known {
        match (said.get_mut(&key), value) {
            (None, value) => drop(said.insert(key, value)),
            (Some(Value::Table(said)), Value::Table(known)) => {
                for (key, value) in known {
                    said.entry(key).or_insert(value);
                }
            }
            (Some(_), _) => {}
        }
    }
    let text = toml::to_string(&said).map_err(|error| error.to_string())?;
    let today = date(2026, 11, 29);
    let read = deadlight_scanner::config::Config::parse(&text, Path::new("scanner.toml"), today);
    read.map(drop).map_err(|error| error.to_string())
}

/// The keys of both files, as `[table] key`, and `[table]` alone; those before the first table as `key`.
pub(super) fn keys() -> BTreeSet<String> {
    [TEMPLATE, deadlight_agent::config::SAMPLE].into_iter().flat_map(keys_of).collect()
}

fn keys_of(sample: &str) -> Vec<String> {
    let (mut table, mut keys) = (String::new(), Vec::new());
    for line in sample.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if let Some(name) = table_of(line) {
            table = format!("[{name}]");
            keys.push(table.clone());
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| is_key(key)) {
            keys.push(format!("{table} {key}").trim_start().to_owned());
        }
    }
    keys
}

/// What is wrong with a key that a sentence names: `[table]`, `[table] key`, `[table] key = value` or `key = value`.
pub(super) fn wrong_in_sentence(span: &str, keys: &BTreeSet<String>) -> Option<String> {
    let left = span.split_once(" = ").map(|(left, _)| left);
    let has = match (span.starts_with('[').then(|| span.split_once(']')).flatten(), left) {
        (Some(_), _) => {
            let (name, rest) = span.trim_start_matches('[').split_once(']')?;
            let rest = rest.trim_start_matches(']').trim();
            let key = rest.split(' ').next().unwrap_or_default();
            if !is_key(name) || !(rest.is_empty() || is_key(key)) {
                return None;
            }
            keys.contains(format!("[{name}] {key}").trim_end())
        }
        (None, Some(key)) if is_key(key) => {
            keys.iter().any(|known| known.rsplit(' ').next() == Some(key) && !known.ends_with(']'))
        }
        _ => return None,
    };
    (!has).then(|| format!("no configuration has `{span}`"))
}

fn table_of(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.trim_start_matches('[').split_once(']')?.0;
    is_key(name).then_some(name)
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}
