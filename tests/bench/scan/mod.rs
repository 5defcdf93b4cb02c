//! Scans of the same nodes by Deadlight and by its peers, in turn, in one run.

mod cases;
pub(crate) mod lab;
pub(crate) mod limits;
mod measure;
mod programs;
mod services;

pub(crate) use cases::{measure, measure_every, measure_long};
