//! What to ask next, and what an answer means. Pure: no socket, no clock.

mod loss;
mod outcome;
mod pacer;
mod payload;
mod schedule;

pub use loss::{Loss, MISS};
pub use outcome::{Outcome, failed_here, reason, refused_by_network};
pub use pacer::Pacer;
pub use payload::payload;
pub use schedule::{Lane, Probe, Schedule, Settled, Step};
