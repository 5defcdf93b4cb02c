//! The agent's HTTPS interface, for scanners of this deployment only.

#[cfg(test)]
mod captured;
mod connection;
mod enrol;
mod routes;
mod server;

pub use connection::Channel;
pub use enrol::enrol_router;
pub use routes::router;
pub use server::{Server, ServerError};
