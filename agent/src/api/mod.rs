//! The agent's HTTPS interface, for scanners of this deployment only.

mod backoff;
mod call;
#[cfg(test)]
mod captured;
mod connection;
mod enrol;
mod routes;
mod server;

pub use call::Caller;
pub use connection::Channel;
pub use enrol::enrol_router;
pub use routes::router;
pub use server::{Server, ServerError};
