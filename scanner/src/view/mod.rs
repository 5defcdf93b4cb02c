//! What is shown of what is remembered: the same for the command line, the page, the API and the metrics. Pure.

mod matrix;
mod status;
mod timeline;

pub use matrix::{Cell, Matrix, Row};
pub use status::{LastSweep, Status, Verdict};
pub use timeline::{Bar, Phase, Timeline, Track, Turn};
