//! A CA for tests, and what scanners and agents hold of it.

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData as _, SanType,
};

use super::{Callers, Credentials};
use crate::key_id::KeyId;
use crate::trust::{Revoked, Trust};

pub(super) const N1: &str = "spiffe://deadlight/agent/n1";
pub(super) const N2: &str = "spiffe://deadlight/agent/n2";
pub(super) const SCANNER: &str = "spiffe://deadlight/scanner/office-a";

pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What one side holds.
pub(super) struct Held {
    pub(super) credentials: Credentials,
    pub(super) key: KeyId,
    /// The certificate and its key, PEM.
    pub(super) pair: [String; 2],
}

impl Ca {
    pub(super) fn new() -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The CA's own certificate, PEM.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// The CA's key.
    pub(super) fn key(&self) -> KeyId {
        KeyId::of_certificate(&self.trust(&[]).certificates().unwrap()[0]).unwrap()
    }

    pub(super) fn trust(&self, revoked: &[KeyId]) -> Trust {
        let until = Timestamp::now();
        let revoked = revoked.iter().map(|&key| Revoked { key, until }).collect();
        Trust { generation: 1, authorities: vec![self.pem.clone()], revoked }
    }

    /// What the holder of a certificate for `uri` has that ended so many days ago, or did not.
    pub(super) fn held(&self, uri: &str, days_ago: i64) -> Held {
        self.held_until(uri, -SignedDuration::from_hours(24 * days_ago))
    }

    /// The same of one that ends `after` this moment. It holds for a week.
    pub(super) fn held_until(&self, uri: &str, after: SignedDuration) -> Held {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = match uri {
            SCANNER => vec![ExtendedKeyUsagePurpose::ClientAuth],
            _ => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        let end = Timestamp::now() + after;
        let at = |time: Timestamp| {
            let second = u64::try_from(time.as_second()).unwrap();
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(second)
        };
        (params.not_before, params.not_after) = (at(end - SignedDuration::from_hours(24 * 7)), at(end));
        let pair = [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()];
        let credentials = Credentials::of_pair(&pair[0], &pair[1], &self.trust(&[])).unwrap();
        Held { credentials, key: KeyId::of_public_key(&key.subject_public_key_info()), pair }
    }

    /// Whom a scanner of this CA lets in, when `renewable` are the keys of n1.
    pub(super) fn callers(&self, renewable: &[KeyId], revoked: &[KeyId], strangers: bool) -> Callers {
        let scanner = self.held(SCANNER, -1).credentials.with_trust(&self.trust(revoked)).unwrap();
        let n1 = ("n1".parse().unwrap(), renewable.iter().copied().collect());
        scanner.callers([n1].into(), strangers)
    }
}
