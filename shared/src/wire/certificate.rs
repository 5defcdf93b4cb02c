//! How an agent gets its certificate: first by an enrolment line, later by the trust that it has.

use serde::{Deserialize, Serialize};

use crate::enrol::Proof;
use crate::name::Name;

/// `POST /v1/enrol`, which an agent answers only while its enrolment window is open: the scanner proves that it printed
/// the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolCall {
    /// Always [`EnrolCall::SCHEMA`].
    pub schema: String,
    /// The node that the line is for.
    pub node: Name,
    /// The scanner's proof.
    pub proof: Proof,
}

/// The answer: the agent proves that it was given the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolAnswer {
    /// A certificate request (PKCS#10, PEM). Only its key counts; names in it are ignored.
    pub request: String,
    /// The agent's proof, for this request.
    pub proof: Proof,
}

/// The answer to `POST /v1/renew`, which has no body: the agent has made a new key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// A certificate request (PKCS#10, PEM). Only its key counts.
    pub request: String,
}

/// `PUT /v1/certificate`: the certificate that was asked for. The answer is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateCall {
    /// Always [`CertificateCall::SCHEMA`].
    pub schema: String,
    /// The certificate, PEM.
    pub certificate: String,
    /// At enrolment: the public key (PEM) by which the operator signs allowlists. Ignored later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_key: Option<String>,
}

impl EnrolCall {
    /// Schema name of this version.
    pub const SCHEMA: &str = "deadlight.enrol/v1";
}

impl CertificateCall {
    /// Schema name of this version.
    pub const SCHEMA: &str = "deadlight.certificate/v1";
}
