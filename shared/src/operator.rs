//! The operator's key, Ed25519: what it signs may loosen. Neither scanner nor agent holds its private half.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, ParsedPublicKey};
use data_encoding::BASE64;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

/// The public half: says whether a text was signed.
#[derive(Clone)]
pub struct OperatorKey {
    der: Vec<u8>,
    parsed: ParsedPublicKey,
}

/// The private half: signs.
pub struct OperatorSecret(Ed25519KeyPair);

/// Why a text is no operator key.
#[derive(Debug, thiserror::Error)]
pub enum OperatorKeyError {
    /// No PEM of the wanted kind.
    #[error("failed to find a PEM block of an Ed25519 key")]
    Pem(#[source] pem::Error),
    /// A key of another kind, or none at all.
    #[error("the PEM block is no Ed25519 key")]
    Kind,
}

impl OperatorKey {
    /// Reads `-----BEGIN PUBLIC KEY-----`.
    pub fn from_pem(pem: &[u8]) -> Result<Self, OperatorKeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(OperatorKeyError::Pem)?;
        Self::from_der(der.to_vec())
    }

    /// Writes `-----BEGIN PUBLIC KEY-----`.
    pub fn to_pem(&self) -> String {
        armoured("PUBLIC KEY", &self.der)
    }

    /// Whether `signature` is the operator's under `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }

    fn from_der(der: Vec<u8>) -> Result<Self, OperatorKeyError> {
        let parsed = ParsedPublicKey::new(&ED25519, &der).map_err(|_| OperatorKeyError::Kind)?;
        Ok(Self { der, parsed })
    }
}

impl OperatorSecret {
    /// A new key.
    pub fn generate() -> Result<Self, OperatorKeyError> {
        Ed25519KeyPair::generate().map(Self).map_err(|_| OperatorKeyError::Kind)
    }

    /// Reads `-----BEGIN PRIVATE KEY-----` (PKCS#8).
    pub fn from_pem(pem: &[u8]) -> Result<Self, OperatorKeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(OperatorKeyError::Pem)?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der());
        pair.map(Self).map_err(|_| OperatorKeyError::Kind)
    }

    /// Writes `-----BEGIN PRIVATE KEY-----` (PKCS#8, as `openssl` reads it).
    pub fn to_pem(&self) -> Result<String, OperatorKeyError> {
        let der = self.0.to_pkcs8v1().map_err(|_| OperatorKeyError::Kind)?;
        Ok(armoured("PRIVATE KEY", der.as_ref()))
    }

    /// The public half.
    pub fn public(&self) -> Result<OperatorKey, OperatorKeyError> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().map_err(|_| OperatorKeyError::Kind)?;
        OperatorKey::from_der(der.as_ref().to_vec())
    }

    /// The signature under `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

/// A PEM block of one line: an Ed25519 key has no more than 48 bytes.
fn armoured(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der))
}

/// The key as one word.
impl fmt::Display for OperatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.der))
    }
}

impl fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperatorKey({self})")
    }
}

impl PartialEq for OperatorKey {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for OperatorKey {}

impl fmt::Debug for OperatorSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_survive_their_files() {
        let secret = OperatorSecret::generate().unwrap();
        let again = OperatorSecret::from_pem(secret.to_pem().unwrap().as_bytes()).unwrap();
        let public = OperatorKey::from_pem(secret.public().unwrap().to_pem().as_bytes()).unwrap();
        assert_eq!(public, again.public().unwrap());
        assert!(public.verifies(b"text", &again.sign(b"text")));
        assert!(!public.verifies(b"another text", &again.sign(b"text")));
        assert!(!OperatorSecret::generate().unwrap().public().unwrap().verifies(b"text", &again.sign(b"text")));
        assert_eq!(format!("{secret:?}"), "OperatorSecret(…)", "never printed");
    }

    #[test]
    fn a_key_is_told_from_another_and_has_a_word_of_its_own() {
        let [one, other] = [(); 2].map(|()| OperatorSecret::generate().unwrap().public().unwrap());
        assert_ne!(one, other);
        assert_ne!(one.to_string(), other.to_string());
        assert!(one.to_pem().contains(&format!("\n{one}\n")), "the word is the line of its PEM block");
        assert_eq!(format!("{one:?}"), format!("OperatorKey({one})"));
    }

    #[test]
    fn reads_what_openssl_writes() {
        // openssl genpkey -algorithm ed25519; openssl pkey -pubout
        let secret = b"-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        let public = b"-----BEGIN PUBLIC KEY-----\n\
            MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
        let secret = OperatorSecret::from_pem(secret).unwrap();
        assert_eq!(secret.public().unwrap(), OperatorKey::from_pem(public).unwrap(), "test 1 of RFC 8032");
    }

    #[test]
    fn another_kind_of_key_is_refused() {
        let secret = OperatorSecret::generate().unwrap().to_pem().unwrap();
        assert!(matches!(OperatorKey::from_pem(secret.as_bytes()), Err(OperatorKeyError::Pem(_))));
        assert!(matches!(OperatorKey::from_pem(b"no key"), Err(OperatorKeyError::Pem(_))));
        let short = armoured("PUBLIC KEY", &[0; 31]);
        assert!(matches!(OperatorKey::from_pem(short.as_bytes()), Err(OperatorKeyError::Kind)));
    }
}
