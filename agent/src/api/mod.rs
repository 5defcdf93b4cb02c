//! The agent's HTTPS interface: three paths, for scanners of this deployment only.

#[cfg(test)]
mod captured;
mod connection;
mod routes;
mod server;

pub use routes::router;
pub use server::{Server, ServerError};
