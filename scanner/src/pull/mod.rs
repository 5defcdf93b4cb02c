//! Pull mode: nodes that do not listen call us. [`Listener`] lets their agents in, the [`Hub`] keeps the youngest call of
//! each node, and what is asked of such a node is asked there.

mod calls;
mod hub;
mod lane;
mod listener;

pub use hub::{Hub, PullError, Purpose, Stranger};
pub use lane::Lane;
pub use listener::{ListenError, Listener};
