#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| deadlight_fuzz::timed(deadlight_fuzz::alert, bytes));
