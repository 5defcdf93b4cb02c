//! What to ask next, and what an answer means. Pure: no socket, no clock.

mod cookie;
mod engine;
mod loss;
mod order;
mod outcome;
mod pacer;
mod packet;
mod payloads;
mod rtt;
#[cfg(test)]
mod simulation;
mod syn;

pub use cookie::{Cookie, SOURCE_PORTS};
pub use engine::{Cost, Engine, Lane, Leftover, Limits, Probe, Reply, Step};
pub use loss::{Loss, MISS};
pub use outcome::{Outcome, failed_here, is_shortage, reason, refused_by_network};
pub use pacer::Pacer;
pub use packet::{Answer, LONGEST as LONGEST_PACKET};
pub use payloads::Payloads;
pub use syn::{Heard, SynStep, SynSweep};
