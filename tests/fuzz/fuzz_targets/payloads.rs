//! A user's payload file: read or refused, never a panic, and no datagram is longer than a path carries.
#![no_main]

use std::path::Path;

use deadlight_scanner::probe::Payloads;
use deadlight_shared::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(table) = config::parse::<Payloads>(text, Path::new("fuzz.toml")) {
        assert!((1..=3).all(|attempt| table.of(53, attempt).len() <= 1_232));
    }
});
