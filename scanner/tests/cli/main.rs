//! The program itself, as an ordinary user runs it: arguments in; output, messages and exit status out.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod alerts;
mod allow;
mod allowlist;
mod bad_input;
mod diff;
mod doctor;
mod fake_agent;
mod hook;
mod older_agent;
mod once;
mod program;
mod scan;
mod schedule;
