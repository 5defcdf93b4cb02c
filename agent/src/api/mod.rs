//! The agent's HTTPS interface: three paths, for scanners of this deployment only.

mod connection;
#[doc(hidden)]
pub mod fuzzing;
mod routes;
mod server;

pub use routes::router;
pub use server::{Server, ServerError};
