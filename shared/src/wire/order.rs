//! The order: every unexpected port the scanner sees on one node. State, not an event.

use std::net::IpAddr;
use std::num::NonZeroU16;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::finding::FindingId;
use crate::name::Name;
use crate::permit::{PermitError, SignedPermit};
use crate::port::{Port, Protocol};
use crate::port_set::PortSet;

/// Largest body of an order, in bytes.
pub const MAX_BODY: usize = 256 * 1024;
/// Largest body of an answer, in bytes: a report says more about a finding than the order did.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;
const MAX_FINDINGS: usize = 1_000;
const MAX_WORD: usize = 64;
/// Most scanners that share a node.
pub const MAX_PEERS: usize = 32;

/// `PUT /v1/exposures`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Always [`Order::SCHEMA`].
    pub schema: String,
    /// Who orders; must be the name in the client certificate.
    pub scanner: Name,
    /// Unix time in seconds at which the scanner began its present state; grows when it lost it.
    pub epoch: u64,
    /// Grows with each order of an epoch.
    pub sequence: u64,
    /// The sweep this order comes from.
    pub scan: String,
    /// The node it is for.
    pub node: Name,
    /// After this instant the order is stale.
    pub expires_at: Timestamp,
    /// All unexpected open ports of the node.
    pub findings: Vec<ReportedFinding>,
    /// All ports that the allowlist opens on the node, such as `80/tcp` or `8000-8100/tcp`.
    #[serde(with = "crate::port_set::as_items")]
    pub allow: PortSet,
    /// The node's part of the signed allowlist, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<SignedPermit>,
    /// Scanners that share the node with this one and have one allowlist with it: this order stands for theirs as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Name>,
}

/// One finding of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedFinding {
    /// The finding's stable name.
    pub id: FindingId,
    /// Address of the node at which the port answered.
    pub address: IpAddr,
    /// Protocol of the port.
    pub protocol: Protocol,
    /// Port number.
    pub port: NonZeroU16,
    /// The word for what was seen, such as `syn-ack`.
    pub evidence: String,
}

/// What is wrong with an order that is well-formed JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Another schema or version.
    #[error("schema is not {}", Order::SCHEMA)]
    Schema,
    /// More findings than one order may carry.
    #[error("more than {MAX_FINDINGS} findings in one order")]
    TooMany,
    /// More peers than one order may name.
    #[error("more than {MAX_PEERS} peers in one order")]
    TooManyPeers,
    /// A free word is too long or not plain ASCII.
    #[error("{0} must be 1 to {MAX_WORD} printable ASCII characters")]
    Word(&'static str),
    /// The same finding twice.
    #[error("finding {0} stands twice in the order")]
    Twice(FindingId),
    /// A permit that is too long.
    #[error(transparent)]
    Permit(#[from] PermitError),
}

impl Order {
    /// Schema name of this version.
    pub const SCHEMA: &str = "deadlight.order/v1";

    /// Checks what the types cannot: schema, counts, lengths.
    pub fn check(&self) -> Result<(), OrderError> {
        if self.schema != Self::SCHEMA {
            return Err(OrderError::Schema);
        }
        if self.findings.len() > MAX_FINDINGS {
            return Err(OrderError::TooMany);
        }
        if self.peers.len() > MAX_PEERS {
            return Err(OrderError::TooManyPeers);
        }
        check_word("scan", &self.scan)?;
        let mut seen = std::collections::BTreeSet::new();
        for finding in &self.findings {
            check_word("evidence", &finding.evidence)?;
            if !seen.insert(&finding.id) {
                return Err(OrderError::Twice(finding.id.clone()));
            }
        }
        Ok(self.permit.as_ref().map_or(Ok(()), SignedPermit::check)?)
    }

    /// The same order for an agent that does not know `field`; `None` where what is reported would not be closed without it,
    /// or a permit not count.
    pub fn without(&self, field: &str) -> Option<Self> {
        // What peers have closed stays closed; what they allowed is exempt from posture `allowlist` until it is reported.
        (field == "peers" && !self.peers.is_empty()).then(|| Self { peers: Vec::new(), ..self.clone() })
    }
}

impl ReportedFinding {
    /// The port with its protocol.
    pub fn port(&self) -> Port {
        Port { protocol: self.protocol, number: self.port }
    }
}

fn check_word(field: &'static str, word: &str) -> Result<(), OrderError> {
    let good = (1..=MAX_WORD).contains(&word.len()) && word.bytes().all(|b| (b' '..=b'~').contains(&b));
    good.then_some(()).ok_or(OrderError::Word(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::OperatorKey;
    use crate::wire::Problem;

    const GOLDEN: &str = include_str!("golden/order.json");
    /// Of the first test of RFC 8032, whose private half all the world knows; `openssl` signed the permit.
    const OPERATOR: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn the_golden_order_reads_and_writes_back() {
        let order: Order = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(order.check(), Ok(()));
        assert_eq!(order.findings[0].port().to_string(), "8080/tcp");
        let operator = OperatorKey::from_pem(OPERATOR.as_bytes()).unwrap();
        let permit = order.permit.as_ref().unwrap().open_for(&order.node, &operator).unwrap();
        assert_eq!(permit.ports_at(jiff::civil::date(2026, 12, 25)), order.allow);
        assert_eq!(format!("{}\n", serde_json::to_string_pretty(&order).unwrap()), GOLDEN);
    }

    #[test]
    fn refuses_what_is_not_an_order() {
        let cases = [
            ("\"port\": 8080", "\"port\": 0", "zero"),
            ("\"port\": 8080", "\"port\": 65536", "65536"),
            ("\"protocol\": \"tcp\"", "\"protocol\": \"sctp\"", "sctp"),
            ("\"node\": \"n1\"", "\"node\": \"../n1\"", "not a name"),
            ("\"epoch\": 3", "\"epoch\": 3, \"mode\": \"enforce\"", "unknown field `mode`"),
            ("443/tcp", "443-80/tcp", "runs backwards"),
        ];
        for (good, bad, wanted) in cases {
            let error = serde_json::from_str::<Order>(&GOLDEN.replacen(good, bad, 1)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{bad}: {error}");
        }
    }

    #[test]
    fn does_without_what_only_opens_where_an_agent_does_not_know_it() {
        let order: Order = serde_json::from_str(GOLDEN).unwrap();
        let shared = Order { peers: vec!["office-b".parse().unwrap()], ..order.clone() };
        assert_eq!(shared.without("peers"), Some(order.clone()));
        assert_eq!(order.without("peers"), None, "there is nothing left to leave out");
        assert_eq!(shared.without("permit"), None, "the allowlist would count without the operator's signature");
        assert_eq!(shared.without("findings"), None);

        let later = GOLDEN.replacen("\"epoch\": 3", "\"epoch\": 3, \"later\": 1", 1);
        let detail = serde_json::from_str::<Order>(&later).unwrap_err().to_string();
        let problem = Problem { title: "Unprocessable Entity".into(), status: 422, detail };
        assert_eq!(problem.unknown_field(), Some("later"), "as every agent of version 1 says it");
        assert_eq!(Problem { detail: "no such path".into(), ..problem }.unknown_field(), None);
    }

    #[test]
    fn checks_counts_and_words() {
        let mut order: Order = serde_json::from_str(GOLDEN).unwrap();
        order.findings.push(order.findings[0].clone());
        assert_eq!(order.check(), Err(OrderError::Twice(order.findings[0].id.clone())));
        order.findings = vec![order.findings[0].clone(); 1_001];
        assert_eq!(order.check(), Err(OrderError::TooMany));
        order.findings.truncate(1);
        order.findings[0].evidence = "syn-ack\nevil".into();
        assert_eq!(order.check(), Err(OrderError::Word("evidence")));
        order.findings[0].evidence = "syn-ack".into();
        order.permit.as_mut().unwrap().text = "x".repeat(40_000);
        assert_eq!(order.check(), Err(OrderError::Permit(PermitError::TooLong)));
        order.schema = "deadlight.order/v2".into();
        assert_eq!(order.check(), Err(OrderError::Schema));
    }
}
