//! The agent's HTTPS interface: three paths, for scanners of this deployment only.

mod connection;
mod door;
mod routes;
mod server;
mod slots;
#[cfg(test)]
mod tests;

pub use routes::router;
pub use server::{Server, ServerError};
pub use slots::Slots;
