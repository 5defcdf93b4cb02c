//! The enrolment line, and how each side proves over a TLS channel that it knows its secret without showing it.
//!
//! The proofs are those of SCRAM (RFC 5802, section 3): the scanner keeps a [`Verifier`], which neither is the secret nor
//! lets anybody enrol. What both sides sign is the channel's exported keying material, so a proof is worth nothing on
//! another channel. A secret of 128 random bits needs no salt and no rounds.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::key_id::KeyId;
use crate::name::Name;

/// Label of the exported keying material (RFC 8446, section 7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-deadlight-enrol-1";
/// Length of the exported keying material, in bytes.
pub const EXPORTER_LENGTH: usize = 32;
/// Length of the secret, in bytes.
pub const SECRET_LENGTH: usize = 16;

const VERSION: &str = "deadlight1";

/// What `deadlight-scanner enroll` prints and `deadlight-agent enroll` takes:
/// `deadlight1:NODE:HASH-OF-THE-CA'S-KEY:SECRET`.
pub struct EnrolLine {
    /// The node that may enrol.
    pub node: Name,
    /// The CA's key, by which the agent knows its scanner.
    pub authority: KeyId,
    /// What both sides prove to know.
    pub secret: Secret,
}

/// 128 random bits. Printed only as part of the line.
pub struct Secret([u8; SECRET_LENGTH]);

/// Why a text is no enrolment line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolLineError {
    /// Another version, or something else altogether.
    #[error("it does not begin with `{VERSION}:`")]
    Version,
    /// Too few or too many parts.
    #[error("it has {0} parts, not 4: part of it is missing, or there is more than the line")]
    Parts(usize),
    /// The node is no name.
    #[error(transparent)]
    Node(#[from] crate::name::NameError),
    /// A part that is cut off or misspelt.
    #[error("its {0} is cut off or misspelt")]
    Part(&'static str),
}

/// What the scanner keeps of a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verifier {
    #[serde(with = "bytes")]
    stored_key: [u8; 32],
    #[serde(with = "bytes")]
    server_key: [u8; 32],
}

/// A proof, in base64url.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(#[serde(with = "bytes")] [u8; 32]);

/// The proof does not fit: another secret, or another channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side does not know the secret of this enrolment line")]
pub struct ProofError;

impl Secret {
    /// The secret of these random bytes.
    pub fn new(random: [u8; SECRET_LENGTH]) -> Self {
        Self(random)
    }

    /// What the scanner keeps.
    pub fn verifier(&self) -> Verifier {
        Verifier { stored_key: sha256(&self.client_key()), server_key: mac(&self.0, &[b"Server Key"]) }
    }

    /// The agent's proof for `request`, its certificate request.
    pub fn agent_proof(&self, channel: &[u8; EXPORTER_LENGTH], request: &str) -> Proof {
        let key = self.client_key();
        Proof(xor(&key, &client_signature(&sha256(&key), channel, request)))
    }

    /// Whether `proof` comes from the scanner that printed the line.
    pub fn check_scanner(&self, proof: &Proof, channel: &[u8; EXPORTER_LENGTH]) -> Result<(), ProofError> {
        let wanted = self.verifier().scanner_proof(channel);
        verify_slices_are_equal(&wanted.0, &proof.0).map_err(|_| ProofError)
    }

    fn client_key(&self) -> [u8; 32] {
        mac(&self.0, &[b"Client Key"])
    }
}

impl Verifier {
    /// The scanner's proof.
    pub fn scanner_proof(&self, channel: &[u8; EXPORTER_LENGTH]) -> Proof {
        Proof(mac(&self.server_key, &[b"scanner", channel]))
    }

    /// Whether `proof` for `request` comes from the agent that was given the line.
    pub fn check_agent(&self, proof: &Proof, channel: &[u8; EXPORTER_LENGTH], request: &str) -> Result<(), ProofError> {
        let key = xor(&proof.0, &client_signature(&self.stored_key, channel, request));
        verify_slices_are_equal(&sha256(&key), &self.stored_key).map_err(|_| ProofError)
    }
}

/// Shows nothing: what is kept of a secret is nobody's to read either.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

impl fmt::Display for EnrolLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [authority, secret] =
            [self.authority.as_bytes().as_slice(), &self.secret.0].map(|bytes| BASE64URL_NOPAD.encode(bytes));
        write!(f, "{VERSION}:{}:{authority}:{secret}", self.node)
    }
}

impl FromStr for EnrolLine {
    type Err = EnrolLineError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = line.trim().split(':').collect();
        match parts.as_slice() {
            [VERSION, node, authority, secret] => Ok(Self {
                node: node.parse()?,
                authority: decoded::<32>("hash of the CA's key", authority)?.into(),
                secret: Secret(decoded("secret", secret)?),
            }),
            [VERSION, ..] => Err(EnrolLineError::Parts(parts.len())),
            _ => Err(EnrolLineError::Version),
        }
    }
}

fn decoded<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], EnrolLineError> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(EnrolLineError::Part(what))
}

fn client_signature(stored_key: &[u8; 32], channel: &[u8; EXPORTER_LENGTH], request: &str) -> [u8; 32] {
    mac(stored_key, &[b"agent", channel, request.as_bytes()])
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    array(context.sign().as_ref())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    array(digest(&SHA256, bytes).as_ref())
}

fn array(bytes: &[u8]) -> [u8; 32] {
    let mut array = [0; 32];
    array.copy_from_slice(bytes);
    array
}

fn xor(one: &[u8; 32], other: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|index| one[index] ^ other[index])
}

mod bytes {
    use data_encoding::BASE64URL_NOPAD;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64URL_NOPAD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| de::Error::custom("not 32 bytes in base64url"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: [u8; 32] = [7; 32];

    fn line() -> EnrolLine {
        let (node, authority) = ("n1".parse().unwrap(), KeyId::of_public_key(b"ca"));
        EnrolLine { node, authority, secret: Secret::new([9; 16]) }
    }

    #[test]
    fn a_line_reads_back_and_a_damaged_one_says_what_is_wrong() {
        let text = line().to_string();
        let read: EnrolLine = format!(" {text}\n").parse().unwrap();
        assert_eq!((read.to_string(), read.node.as_str()), (text.clone(), "n1"));
        assert_eq!(read.authority, line().authority, "the CA whose key the line names");
        let error = |text: &str| text.parse::<EnrolLine>().err().unwrap().to_string();
        assert!(error("").contains("does not begin"));
        assert!(error(&text.replace("deadlight1", "deadlight2")).contains("does not begin"));
        assert!(error(text.rsplit_once(':').unwrap().0).contains("3 parts"));
        assert!(error(&text[..text.len() - 1]).contains("secret is cut off"));
        assert!(error(&text.replace(":n1:", ":n 1:")).contains("is not a name"));
        assert!(error(&text.replace(":n1:", ":n1:*")).contains("hash of the CA's key"));
    }

    #[test]
    fn both_sides_prove_the_secret_on_this_channel_only() {
        let (secret, request) = (Secret::new([9; 16]), "request");
        let verifier = secret.verifier();
        assert_eq!(secret.check_scanner(&verifier.scanner_proof(&CHANNEL), &CHANNEL), Ok(()));
        let proof = secret.agent_proof(&CHANNEL, request);
        assert_eq!(verifier.check_agent(&proof, &CHANNEL, request), Ok(()));

        let other = Secret::new([8; 16]);
        assert_eq!(verifier.check_agent(&other.agent_proof(&CHANNEL, request), &CHANNEL, request), Err(ProofError));
        assert_eq!(other.check_scanner(&verifier.scanner_proof(&CHANNEL), &CHANNEL), Err(ProofError));
        assert_eq!(verifier.check_agent(&proof, &[6; 32], request), Err(ProofError), "relayed");
        assert_eq!(secret.check_scanner(&verifier.scanner_proof(&CHANNEL), &[6; 32]), Err(ProofError), "relayed");
        assert_eq!(verifier.check_agent(&proof, &CHANNEL, "another key's"), Err(ProofError));
        assert_eq!(secret.check_scanner(&proof, &CHANNEL), Err(ProofError), "reflected");
    }

    #[test]
    fn what_the_scanner_keeps_does_not_enrol() {
        let secret = Secret::new([9; 16]);
        let verifier = secret.verifier();
        for key in [verifier.stored_key, verifier.server_key] {
            let forged = Proof(xor(&key, &client_signature(&verifier.stored_key, &CHANNEL, "request")));
            assert_eq!(verifier.check_agent(&forged, &CHANNEL, "request"), Err(ProofError));
        }
        let kept = serde_json::to_string(&verifier).unwrap();
        assert!(!kept.contains(&BASE64URL_NOPAD.encode(&secret.0)));
        assert_eq!(format!("{verifier:?}"), "Verifier(..)", "a log shows nothing of it");
        assert!(serde_json::from_str::<Verifier>(&kept).unwrap() == verifier);
    }
}
