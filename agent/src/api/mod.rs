//! The agent's HTTPS interface, for scanners of this deployment only.

mod backoff;
mod call;
#[cfg(test)]
mod captured;
mod connection;
mod door;
mod enrol;
#[doc(hidden)]
pub mod fuzzing;
mod routes;
mod server;
mod slots;
mod stranger;
#[cfg(test)]
mod tests;

pub use call::Caller;
pub use connection::Channel;
pub use enrol::enrol_router;
pub use routes::router;
pub use server::{Server, ServerError};
pub use slots::Slots;
