//! Exit statuses.

use std::process::ExitCode;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// Nothing unexpected.
    Fine = 0,
    /// Unexpected exposure; of two compared scans, a difference.
    Exposed = 1,
    /// Usage, configuration or run-time error.
    Error = 2,
    /// Something could not be asked or proven.
    Incomplete = 3,
}

pub(super) const HELP: &str = "\
Exit status:
  0  nothing unexpected
  1  an unexpected port is open
  2  usage, configuration or run-time error
  3  incomplete: something could not be asked (and nothing unexpected was seen)";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
