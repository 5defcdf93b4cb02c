//! Files that people write.

use std::path::Path;

use deadlight_agent::config::Config as AgentConfig;
use deadlight_agent::ledger::Permitted;
use deadlight_scanner::cli::fuzzing;
use deadlight_scanner::config::{Config as ScannerConfig, parse_allowlist};
use deadlight_scanner::probe::Payloads;
use deadlight_shared::allowlist::Subject;
use deadlight_shared::{Name, Port, Protocol, config, hint};
use jiff::civil::{Date, date};

use crate::text::assert_line;

const TODAY: Date = date(2026, 11, 25);

/// The agent's configuration: whatever it says, 22/tcp and the agent's own port are protected.
pub fn agent_config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match config::parse::<AgentConfig>(text, file()) {
        Err(error) => assert_line(&error.to_string()),
        Ok(config) => {
            for knows_peers in [false, true] {
                let policy = config.policy(&[], knows_peers, Permitted::All);
                let own = Port::new(Protocol::Tcp, config.listen.port());
                // A node that calls has no port of its own.
                let own = own.filter(|_| config.pull.is_none());
                for port in [Port::new(Protocol::Tcp, 22), own].into_iter().flatten() {
                    assert!(policy.protection(port).is_some(), "{port}");
                }
                let closed = config.closed(knows_peers);
                assert!(knows_peers || closed.is_empty(), "{closed}");
            }
            assert!(config.trusted.iter().all(|net| net.prefix_len() > 0));
        }
    }
}

/// The scanner's configuration: what is taken names nodes, addresses and ports, and nothing that has expired opens a port.
pub fn scanner_config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match ScannerConfig::parse(text, file(), TODAY) {
        Err(error) => assert_line(&hint::causes(&error)),
        Ok(config) => {
            assert!(!config.nodes.is_empty() && config.nodes.iter().all(|node| !node.addresses.is_empty()));
            assert!(!config.ports.is_empty());
            for (node, expected) in config.nodes.iter().zip(config.expectations(TODAY)) {
                let own = node.own_ports();
                let covered = |port| config.allowlist.covering(node.subject(), port, TODAY).is_some();
                assert!(expected.ports.iter().all(|port| own.contains(port) || covered(port)));
            }
            config.expired(TODAY).iter().for_each(|line| assert_line(line));
        }
    }
}

/// An allowlist: a port that it opens has an entry with an owner and a reason that is in force.
pub fn allowlist(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let node: Name = "n1".parse().unwrap();
    match parse_allowlist(text, file(), [&node].into_iter(), TODAY) {
        Err(error) => assert_line(&hint::causes(&error)),
        Ok(allowlist) => {
            let subject = Subject { node: &node, labels: &[] };
            for port in allowlist.ports_of(subject, TODAY).iter() {
                let entry = allowlist.covering(subject, port, TODAY).expect("an entry for each port");
                assert!(!entry.owner.trim().is_empty() && !entry.reason.trim().is_empty());
                assert!(entry.expires.is_none_or(|last| TODAY <= last));
            }
        }
    }
}

/// A file of payloads: no datagram is longer than a path carries.
pub fn payloads(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match config::parse::<Payloads>(text, file()) {
        Err(error) => assert_line(&error.to_string()),
        Ok(table) => assert!((1..=3).all(|attempt| table.of(53, attempt).len() <= 1_232)),
    }
}

/// A scan that somebody saved.
pub fn saved_scan(bytes: &[u8]) {
    if let Err(error) = fuzzing::saved(bytes) {
        assert_line(&error);
    }
}

fn file() -> &'static Path {
    Path::new("fuzz.toml")
}
