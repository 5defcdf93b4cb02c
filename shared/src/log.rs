//! The log of a program on standard error: one record a line, whatever is in it.

use std::fmt;
use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

use crate::text::printable;

/// Longest record that is written whole.
const LONGEST: usize = 4_096;

/// Begins to log; `level` holds unless the environment variable DEADLIGHT_LOG says otherwise.
pub fn init(level: &str) {
    let filter = EnvFilter::try_from_env("DEADLIGHT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    log.fmt_fields(Escaped).init();
}

/// Fields and message as tracing writes them, with everything escaped that could end the line or hide it.
struct Escaped;

impl<'writer> FormatFields<'writer> for Escaped {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&printable(&text, LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_record_is_a_line_whatever_is_in_it() {
        let memory = Memory::default();
        let writer = memory.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(true).fmt_fields(Escaped);
        tracing::subscriber::with_default(log.finish(), || {
            let hostile = "x\nERROR forged\x1b[2J\u{202e}\u{9b}";
            let _span = tracing::error_span!("asked", hostile).entered();
            tracing::error!(error = %hostile, debug = ?hostile, "{hostile}");
            tracing::error!("{}", "y".repeat(10_000));
        });
        let written = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = written.lines().collect();
        assert_eq!(lines.len(), 2, "{written}");
        assert!(!written.contains(['\u{202e}', '\u{9b}', '\r']) && !written.contains("\x1b[2J"), "{written:?}");
        assert!(lines[1].chars().count() < LONGEST + 200, "{}", lines[1].len());
    }
}
