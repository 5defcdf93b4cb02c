//! Who the agent is, and whom it trusts.

mod document;
mod keyring;
mod window;

pub use document::{Document, DocumentError};
pub use keyring::{IdentityError, Keyring};
pub use window::{Enrolled, Window, WindowError};
