//! What crosses the wire between scanner and agent, version 1: JSON over mutual TLS.
//!
//! The agent refuses unknown fields of an order; the scanner ignores unknown fields of a report,
//! so that an agent may be newer than its scanner.

mod cause;
mod certificate;
mod explanation;
mod order;
mod problem;
mod report;
mod status;

pub use cause::{Cause, CauseKind};
pub use certificate::{CertificateCall, EnrolAnswer, EnrolCall, RenewAnswer};
pub use explanation::Explanation;
pub use order::{MAX_ANSWER, MAX_BODY, MAX_PEERS, Order, OrderError, ReportedFinding};
pub use problem::Problem;
pub use report::{Mode, OrderMark, Outcome, OutcomeStatus, Report};
pub use status::{Callers, ClosedPort, Status};
