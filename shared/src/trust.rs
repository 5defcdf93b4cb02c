//! Whom a deployment trusts: its CAs and the keys that are revoked, in one document that a CA has signed. Each call to an
//! agent carries it; a younger one takes the place of an older one.

use std::collections::BTreeSet;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::key_id::KeyId;

/// Header that carries a [`SignedTrust`] to an agent, and from it the generation that it holds.
pub const TRUST_HEADER: &str = "deadlight-trust";
/// Most keys that can be revoked at a time; they are forgotten when their certificates are long dead.
pub const MAX_REVOKED: usize = 256;
const MAX_AUTHORITIES: usize = 4;
/// What is signed begins with this, so that no other signature of the CA can be taken for this one.
const CONTEXT: &[u8] = b"deadlight trust 1\n";

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// Grows with each change; an older document never replaces a younger one.
    pub generation: u64,
    /// Certificates of the CAs, PEM.
    pub authorities: Vec<String>,
    /// Keys that are no longer anybody's.
    pub revoked: Vec<Revoked>,
}

/// A revoked key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// The key.
    pub key: KeyId,
    /// When its certificate could not even be renewed any more.
    pub until: Timestamp,
}

/// A [`Trust`] as it is kept and sent: the very bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedTrust {
    document: String,
    signature: String,
}

/// Why a trust document is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not what was sent, or of another version.
    #[error("failed to read the trust document")]
    Malformed(#[source] serde_json::Error),
    /// An authority that is no certificate, none, or too many.
    #[error("the trust document does not name 1 to {MAX_AUTHORITIES} certificates of CAs")]
    Authorities,
    /// More revoked keys than a document may name.
    #[error("the trust document revokes more than {MAX_REVOKED} keys")]
    Revoked,
    /// Nobody whom we trust has signed it.
    #[error("the trust document is not signed by a CA of this deployment")]
    Signature,
}

impl SignedTrust {
    /// Signs `trust` by `sign`, which makes an ECDSA P-256 signature with a CA's key.
    pub fn sign<E>(
        trust: &Trust,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Result<Self, E>, TrustError> {
        let document = serde_json::to_string(trust).map_err(TrustError::Malformed)?;
        let signed = sign(&to_be_signed(&document));
        Ok(signed.map(|signature| Self { document, signature: BASE64URL_NOPAD.encode(&signature) }))
    }

    /// The document, when one of the CAs `trusted` has signed it. An authority that it names itself counts only when its
    /// key is among them.
    pub fn open(&self, trusted: &[CertificateDer<'_>]) -> Result<Trust, TrustError> {
        let signature = BASE64URL_NOPAD.decode(self.signature.as_bytes()).map_err(|_| TrustError::Signature)?;
        let message = to_be_signed(&self.document);
        if !trusted.iter().any(|authority| has_signed(authority, &message, &signature)) {
            return Err(TrustError::Signature);
        }
        self.unverified()
    }

    /// The document and the certificate of the CA, when that has the key `pinned` and has signed it: for a first meeting.
    pub fn open_pinned(&self, pinned: KeyId) -> Result<Trust, TrustError> {
        let named = self.unverified()?.certificates()?;
        let is_pinned = |authority: &CertificateDer<'_>| KeyId::of_certificate(authority) == Some(pinned);
        self.open(&named.into_iter().filter(is_pinned).collect::<Vec<_>>())
    }

    /// As a header's value.
    pub fn to_header(&self) -> String {
        format!("{}.{}", BASE64URL_NOPAD.encode(self.document.as_bytes()), self.signature)
    }

    /// From a header's value. Nothing is verified yet.
    pub fn from_header(value: &str) -> Result<Self, TrustError> {
        let (document, signature) = value.split_once('.').ok_or(TrustError::Signature)?;
        let document = BASE64URL_NOPAD.decode(document.as_bytes()).map_err(|_| TrustError::Signature)?;
        let document = String::from_utf8(document).map_err(|_| TrustError::Signature)?;
        Ok(Self { document, signature: signature.to_owned() })
    }

    fn unverified(&self) -> Result<Trust, TrustError> {
        let trust: Trust = serde_json::from_str(&self.document).map_err(TrustError::Malformed)?;
        trust.certificates()?;
        if trust.revoked.len() > MAX_REVOKED {
            return Err(TrustError::Revoked);
        }
        Ok(trust)
    }
}

impl Trust {
    /// The CAs' certificates.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        let parsed = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| TrustError::Authorities);
        match self.authorities.len() {
            1..=MAX_AUTHORITIES => self.authorities.iter().map(parsed).collect(),
            _ => Err(TrustError::Authorities),
        }
    }

    /// The revoked keys.
    pub fn revoked_keys(&self) -> BTreeSet<KeyId> {
        self.revoked.iter().map(|revoked| revoked.key).collect()
    }
}

fn to_be_signed(document: &str) -> Vec<u8> {
    [CONTEXT, document.as_bytes()].concat()
}

fn has_signed(authority: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    X509Certificate::from_der(authority).is_ok_and(|(_, authority)| {
        let key = &authority.public_key().subject_public_key.data;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(message, signature).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SigningKey as _};

    struct Ca {
        pem: String,
        key: KeyPair,
    }

    impl Ca {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            Self { pem: params.self_signed(&key).unwrap().pem(), key }
        }

        fn certificate(&self) -> CertificateDer<'static> {
            CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()
        }

        fn sign(&self, trust: &Trust) -> SignedTrust {
            SignedTrust::sign(trust, |message| self.key.sign(message)).unwrap().unwrap()
        }
    }

    fn trust(authorities: &[&Ca]) -> Trust {
        let authorities = authorities.iter().map(|ca| ca.pem.clone()).collect();
        Trust { generation: 3, authorities, revoked: Vec::new() }
    }

    #[test]
    fn opens_only_for_whom_the_signer_is_trusted() {
        let (one, other) = (Ca::new(), Ca::new());
        let (both, signed) = (trust(&[&one, &other]), one.sign(&trust(&[&one, &other])));
        assert_eq!(signed.open(&[one.certificate()]).unwrap(), both);
        let through_a_header = SignedTrust::from_header(&signed.to_header()).unwrap();
        assert_eq!(through_a_header.open(&[other.certificate(), one.certificate()]).unwrap(), both);
        assert!(matches!(signed.open(&[other.certificate()]), Err(TrustError::Signature)), "it names itself");
        assert!(matches!(signed.open(&[]), Err(TrustError::Signature)));
    }

    #[test]
    fn a_pinned_key_must_have_signed_and_be_named() {
        let (one, other) = (Ca::new(), Ca::new());
        let pinned = KeyId::of_certificate(&one.certificate()).unwrap();
        assert!(one.sign(&trust(&[&one])).open_pinned(pinned).is_ok());
        assert!(matches!(other.sign(&trust(&[&one, &other])).open_pinned(pinned), Err(TrustError::Signature)));
        assert!(matches!(one.sign(&trust(&[&other])).open_pinned(pinned), Err(TrustError::Signature)));
    }

    #[test]
    fn a_changed_document_does_not_open() {
        let one = Ca::new();
        let signed = one.sign(&trust(&[&one]));
        let changed = SignedTrust { document: signed.document.replace(":3", ":4"), ..signed.clone() };
        assert!(matches!(changed.open(&[one.certificate()]), Err(TrustError::Signature)));
        for bad in ["", ".", "a.b", &signed.to_header()[1..]] {
            let opened = SignedTrust::from_header(bad).and_then(|signed| signed.open(&[one.certificate()]));
            assert!(matches!(opened, Err(TrustError::Signature)), "{bad}");
        }
    }

    #[test]
    fn counts_are_bounded() {
        let one = Ca::new();
        let many = Trust { authorities: vec![one.pem.clone(); 5], ..trust(&[]) };
        assert!(matches!(one.sign(&many).open(&[one.certificate()]), Err(TrustError::Authorities)));
        assert!(matches!(one.sign(&trust(&[])).open(&[one.certificate()]), Err(TrustError::Authorities)));
        let revoked = Revoked { key: KeyId::of_public_key(b"x"), until: Timestamp::UNIX_EPOCH };
        let revoking = |count| Trust { revoked: vec![revoked.clone(); count], ..trust(&[&one]) };
        assert!(one.sign(&revoking(MAX_REVOKED)).open(&[one.certificate()]).is_ok());
        let many = revoking(MAX_REVOKED + 1);
        assert!(matches!(one.sign(&many).open(&[one.certificate()]), Err(TrustError::Revoked)));
    }
}
