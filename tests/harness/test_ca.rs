//! Certificates that Deadlight itself would never issue.

use std::{path::Path, time::Duration};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

/// A CA of our own: either one made here (a foreign one, to the agent) or the deployment's with its stolen key.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
}

/// A client certificate and its key.
#[derive(Debug)]
pub struct Identity {
    /// The chain, leaf only.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// The identity in two PEM files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self> {
        let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
        Ok(Self { chain, key: PrivateKeyDer::from_pem_file(key)? })
    }
}

/// How long a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub enum Validity {
    /// For many years.
    Current,
    /// It ended in 2001.
    Expired,
}

impl TestCa {
    /// A CA that nobody has heard of.
    pub fn foreign() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { issuer: Issuer::new(params, KeyPair::generate()?) })
    }

    /// The CA whose certificate and key these PEM texts are.
    pub fn of(certificate: &str, key: &str) -> Result<Self> {
        Ok(Self { issuer: Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)? })
    }

    /// A certificate (PEM) for `uri` and the key `key` (PEM), which ended at `end`, a week after its beginning.
    pub fn certify(&self, key: &str, uri: &str, end: &str) -> Result<String> {
        let end: jiff::Timestamp = end.parse()?;
        let at = |seconds: i64| {
            Ok::<_, anyhow::Error>(
                date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(end.as_second() + seconds)?),
            )
        };
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = (at(-7 * 86_400)?, at(0)?);
        Ok(params.signed_by(&KeyPair::from_pem(key)?, &self.issuer)?.pem())
    }

    /// A client certificate for `uri`, such as `spiffe://deadlight/scanner/office-a`.
    pub fn issue(&self, uri: &str, validity: Validity) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        if let Validity::Expired = validity {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }
}
