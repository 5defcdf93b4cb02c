//! The words that scanner and agent both speak: ports and port sets, the allowlist, findings,
//! the order and the report that cross the wire, identities and TLS.
//!
//! No runtime, no command line and no sockets: everything here is a value or a pure function,
//! but for [`mod@file`] (one atomic write), [`tls`] (reading certificates), and how a program begins: [`log`], [`memory`].

pub mod allowlist;
pub mod config;
pub mod doctor;
pub mod enrol;
pub mod explained;
pub mod file;
pub mod finding;
pub mod hint;
pub mod identity;
pub mod key_id;
pub mod log;
pub mod memory;
pub mod name;
pub mod numbers;
pub mod observation;
pub mod operator;
pub mod own_host;
pub mod permit;
pub mod port;
pub mod port_set;
pub mod text;
pub mod tls;
pub mod trust;
pub mod wire;

pub use allowlist::{AllowEntry, Allowlist};
pub use finding::{Finding, FindingId, FindingStatus};
pub use identity::Identity;
pub use key_id::KeyId;
pub use name::Name;
pub use observation::{Evidence, Observation, PortState};
pub use operator::{OperatorKey, OperatorSecret};
pub use permit::{Permit, PermitEntry, SignedPermit};
pub use port::{Port, Protocol};
pub use port_set::PortSet;
