//! Captured packets: whatever comes in, nothing breaks, and what is read belongs to one family.
#![no_main]

use deadlight_scanner::probe::Answer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    if let Some(answer) = Answer::read(packet) {
        assert_eq!(answer.ends.source.is_ipv4(), answer.ends.target.is_ipv4());
    }
});
