//! When a port counts as proven closed. Pure: no socket, no clock.

mod control;
mod proof;
mod second;
#[cfg(test)]
mod simulation;
mod verdict;
mod window;

pub use proof::Reply;
pub use second::{Saw, Second, seconded};
pub use verdict::{Evidence, Unproven, Verdict};
pub use window::{Question, Step, Window};
