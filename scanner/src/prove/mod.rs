//! When a port counts as proven closed. Pure: no socket, no clock.

mod proof;
mod window;

pub use proof::{Evidence, Rate, Reply, Unproven, Verdict};
pub use window::{Question, Step, Window};
