//! What is done with bytes of others, and what must hold of it: one function for each kind of bytes. `make fuzz` looks
//! for bytes for which it does not; `tests/corpus.rs` gives each function what was found so far, in every test run.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "what cannot be is a finding")]

mod alert;
mod door;
mod files;
mod nftables;
mod printed;
mod rules;
mod text;
mod wire;
mod world;

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

pub use alert::alert;
pub use door::{docker, door};
pub use files::{agent_config, allowlist, payloads, saved_scan, scanner_config};
pub use nftables::nft;
pub use printed::{agent_answer, sinks};
pub use rules::iptables_save;
pub use wire::{answer, certificate, enrol_line, order, report};

/// No input may keep a core busy for longer.
const LIMIT: Duration = Duration::from_millis(100);

/// What is done with one kind of bytes.
pub type Target = fn(&[u8]);

/// Every kind of bytes by the name of its corpus and of its program.
pub const TARGETS: [(&str, Target); 17] = [
    ("agent_answer", agent_answer),
    ("agent_config", agent_config),
    ("alert", alert),
    ("allowlist", allowlist),
    ("answer", answer),
    ("certificate", certificate),
    ("docker", docker),
    ("door", door),
    ("enrol_line", enrol_line),
    ("iptables_save", iptables_save),
    ("nft", nft),
    ("order", order),
    ("payloads", payloads),
    ("report", report),
    ("saved_scan", saved_scan),
    ("scanner_config", scanner_config),
    ("sinks", sinks),
];

/// Runs `target`; one that takes too long is a finding. Time of this thread, so that a busy machine is none.
pub fn timed(target: Target, bytes: &[u8]) {
    let before = spent();
    target(bytes);
    let spent = spent() - before;
    assert!(spent <= LIMIT, "{} bytes took {spent:?}", bytes.len());
}

fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has a clock").into()
}
