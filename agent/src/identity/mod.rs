//! Who the agent is, and whom it trusts.

mod document;
mod keyring;
mod window;

pub use document::{Document, DocumentError};
#[cfg(test)]
pub(crate) use keyring::tests::enrolled;
pub use keyring::{IdentityError, Keyring};
pub use window::{Enrolled, Window, WindowError};

#[cfg(test)]
mod tests;
