//! The permit: what the allowlist opens on one node, signed by the operator's key.
//!
//! It crosses the wire as the very text that was signed; nothing is written anew before it is checked.

use data_encoding::BASE64;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::operator::{OperatorKey, OperatorSecret};
use crate::port::Protocol;
use crate::port_set::PortSet;

/// Longest text of a permit, in bytes: an order has room for it beside a thousand findings.
pub const MAX_TEXT: usize = 32 * 1024;
const MAX_SIGNATURE: usize = 128;
/// So that no signature under anything else is ever taken for a permit's.
const DOMAIN: &[u8] = b"deadlight.permit/v1\0";

/// Which ports may be open on one node, until when. Labels and `*` are resolved: whoever carries a permit
/// could claim any label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permit {
    /// Always [`Permit::SCHEMA`].
    pub schema: String,
    /// The node it is for.
    pub node: Name,
    /// Only rises: of two permits the one with the higher number holds.
    pub number: u64,
    /// What may be open.
    pub entries: Vec<PermitEntry>,
}

/// Ports that may be open until one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PermitEntry {
    /// The ports.
    #[serde(with = "crate::port_set::as_items")]
    pub ports: PortSet,
    /// Last day (UTC) on which the entry holds; without it, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Date>,
}

/// A permit as it is carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedPermit {
    /// The permit's JSON, byte for byte as it was signed.
    pub text: String,
    /// The signature, base64.
    pub signature: String,
}

/// Why a permit is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PermitError {
    /// Larger than a permit may be.
    #[error("a permit may have {MAX_TEXT} bytes")]
    TooLong,
    /// Not signed by this operator's key, or changed since.
    #[error("the permit is not signed by the operator's key")]
    Signature,
    /// Well signed, and yet no permit of this version.
    #[error("the signed text is no permit: {}", crate::text::printable(.0, 200))]
    Text(String),
    /// Another node's.
    #[error("the permit is for {0}")]
    Node(Name),
    /// "Any port" is no intent.
    #[error("the permit allows every {0} port")]
    Any(Protocol),
}

impl Permit {
    /// Schema name of this version.
    pub const SCHEMA: &str = "deadlight.permit/v1";

    /// Every port that may be open on `today` (UTC).
    pub fn ports_at(&self, today: Date) -> PortSet {
        let mut ports = PortSet::default();
        for entry in self.entries.iter().filter(|entry| entry.expires.is_none_or(|last_day| today <= last_day)) {
            ports.extend(&entry.ports);
        }
        ports
    }

    /// Signs it.
    pub fn sign(&self, secret: &OperatorSecret) -> Result<SignedPermit, PermitError> {
        self.check()?;
        let text = serde_json::to_string(self).map_err(|error| PermitError::Text(error.to_string()))?;
        let signature = BASE64.encode(&secret.sign(&message(&text)));
        let signed = SignedPermit { text, signature };
        signed.check().map(|()| signed)
    }

    /// Checks what the types cannot.
    fn check(&self) -> Result<(), PermitError> {
        if self.schema != Self::SCHEMA {
            return Err(PermitError::Text(format!("schema is not {}", Self::SCHEMA)));
        }
        let any = |protocol: &Protocol| {
            self.entries.iter().any(|entry| entry.ports.ranges(*protocol).contains(&(1, u16::MAX)))
        };
        Protocol::ALL.into_iter().find(any).map_or(Ok(()), |protocol| Err(PermitError::Any(protocol)))
    }
}

impl SignedPermit {
    /// Checks the lengths.
    pub fn check(&self) -> Result<(), PermitError> {
        let fits = self.text.len() <= MAX_TEXT && self.signature.len() <= MAX_SIGNATURE;
        fits.then_some(()).ok_or(PermitError::TooLong)
    }

    /// The permit, if `key` signed it.
    pub fn open(&self, key: &OperatorKey) -> Result<Permit, PermitError> {
        self.check()?;
        let signature = BASE64.decode(self.signature.as_bytes()).map_err(|_| PermitError::Signature)?;
        if !key.verifies(&message(&self.text), &signature) {
            return Err(PermitError::Signature);
        }
        self.unverified()
    }

    /// The permit, if `key` signed it for `node`.
    pub fn open_for(&self, node: &Name, key: &OperatorKey) -> Result<Permit, PermitError> {
        let permit = self.open(key)?;
        match permit.node == *node {
            true => Ok(permit),
            false => Err(PermitError::Node(permit.node)),
        }
    }

    /// What it says, whoever signed it: to be shown, never to be acted on.
    pub fn unverified(&self) -> Result<Permit, PermitError> {
        let permit: Permit = serde_json::from_str(&self.text).map_err(|error| PermitError::Text(error.to_string()))?;
        permit.check().map(|()| permit)
    }
}

fn message(text: &str) -> Vec<u8> {
    [DOMAIN, text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use proptest::prelude::*;

    fn secret() -> OperatorSecret {
        OperatorSecret::generate().unwrap()
    }

    fn permit(node: &str, number: u64, entries: &[(&str, Option<Date>)]) -> Permit {
        let entry =
            |(ports, expires): &(&str, Option<Date>)| PermitEntry { ports: ports.parse().unwrap(), expires: *expires };
        let entries = entries.iter().map(entry).collect();
        Permit { schema: Permit::SCHEMA.to_owned(), node: node.parse().unwrap(), number, entries }
    }

    #[test]
    fn opens_for_its_node_under_its_key_alone() {
        let (operator, stranger) = (secret(), secret());
        let permit = permit("n1", 7, &[("80,443/tcp", None)]);
        let signed = permit.sign(&operator).unwrap();
        let (key, node) = (operator.public().unwrap(), "n1".parse().unwrap());
        assert_eq!(signed.open_for(&node, &key), Ok(permit));
        assert_eq!(signed.open(&stranger.public().unwrap()), Err(PermitError::Signature));
        let other = "n2".parse().unwrap();
        assert_eq!(signed.open_for(&other, &key), Err(PermitError::Node(node)));
        let bare = BASE64.encode(&operator.sign(signed.text.as_bytes()));
        assert_eq!(SignedPermit { signature: bare, ..signed }.open(&key), Err(PermitError::Signature), "no domain");
    }

    #[test]
    fn a_widened_entry_is_not_the_operators() {
        let operator = secret();
        let key = operator.public().unwrap();
        let signed = permit("n1", 7, &[("80/tcp", Some(date(2026, 12, 24)))]).sign(&operator).unwrap();
        for (good, bad) in [("80/tcp", "80-90/tcp"), ("2026-12-24", "2036-12-24"), (":7,", ":8,"), ("n1", "n2")] {
            let forged = SignedPermit { text: signed.text.replacen(good, bad, 1), ..signed.clone() };
            assert_ne!(forged.text, signed.text, "{bad}");
            assert_eq!(forged.open(&key), Err(PermitError::Signature), "{bad}");
        }
        let spaced = SignedPermit { text: format!("{} ", signed.text), ..signed };
        assert_eq!(spaced.open(&key), Err(PermitError::Signature), "the same meaning is not the same text");
    }

    #[test]
    fn an_entry_holds_through_its_last_day() {
        let permit = permit("n1", 1, &[("80/tcp", None), ("8080/tcp,53/udp", Some(date(2026, 12, 24)))]);
        assert_eq!(permit.ports_at(date(2026, 12, 24)).to_string(), "80/tcp,8080/tcp,53/udp");
        assert_eq!(permit.ports_at(date(2026, 12, 25)).to_string(), "80/tcp");
    }

    #[test]
    fn what_is_signed_has_to_be_a_permit() {
        let operator = secret();
        let key = operator.public().unwrap();
        assert_eq!(permit("n1", 1, &[("1-65535/udp", None)]).sign(&operator), Err(PermitError::Any(Protocol::Udp)));
        let sign = |text: String| {
            let signature = BASE64.encode(&operator.sign(&message(&text)));
            SignedPermit { text, signature }.open(&key).unwrap_err().to_string()
        };
        let good = serde_json::to_string(&permit("n1", 1, &[("80/tcp", None)])).unwrap();
        for (from, to, wanted) in [
            ("permit/v1", "permit/v2", "schema is not"),
            ("80/tcp", "1-65535/tcp", "every tcp port"),
            ("80/tcp", "0/tcp", "out of range"),
            ("\"number\"", "\"numbr\"", "unknown field"),
        ] {
            let error = sign(good.replacen(from, to, 1));
            assert!(error.contains(wanted), "{to}: {error}");
        }
        assert!(sign(" ".repeat(MAX_TEXT + 1)).contains("32768 bytes"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// One file of a thousand: bytes changed, cut out, put in, of the text or of the signature.
        #[test]
        fn no_mutation_is_accepted(
            at in any::<prop::sample::Index>(),
            length in 0_usize..4,
            put in prop::collection::vec(any::<char>(), 0..4),
            in_text in any::<bool>(),
        ) {
            let signed = &*SIGNED;
            let mut mutated = signed.0.clone();
            let field = if in_text { &mut mutated.text } else { &mut mutated.signature };
            let mut letters: Vec<char> = field.chars().collect();
            let start = at.index(letters.len());
            let end = letters.len().min(start + length);
            letters.splice(start..end, put);
            *field = letters.into_iter().collect();
            prop_assume!(mutated != signed.0);
            prop_assert!(mutated.open(&signed.1).is_err());
        }
    }

    static SIGNED: std::sync::LazyLock<(SignedPermit, OperatorKey)> = std::sync::LazyLock::new(|| {
        let operator = secret();
        let permit = permit("n1", 1_764_000_000, &[("80,443/tcp", None), ("8000-8010/tcp", Some(date(2026, 12, 24)))]);
        (permit.sign(&operator).unwrap(), operator.public().unwrap())
    });
}
