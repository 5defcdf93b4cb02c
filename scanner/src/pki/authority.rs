//! One CA: its key signs certificates and the trust document.

use std::fs;
use std::path::Path;

use deadlight_shared::tls::Validity;
use deadlight_shared::{Identity, KeyId};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SigningKey as _,
};
use x509_parser::pem::Pem;

use super::PkiError;

const CA_LIFE: SignedDuration = SignedDuration::from_hours(24 * 3_653);
/// A certificate holds a little earlier than it was made, for clocks that are behind.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);
/// The last second that a certificate can name: 9999-12-31T23:59:59Z.
const LAST_SECOND: i64 = 253_402_300_799;

/// A CA, ready to sign.
pub(super) struct Authority {
    pem: String,
    key: KeyId,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was made.
#[derive(Debug)]
pub(super) struct Made {
    /// PEM.
    pub(super) certificate: String,
    /// The key it is for.
    pub(super) key: KeyId,
    /// When it holds.
    pub(super) validity: Validity,
}

impl Authority {
    /// Makes a CA in `directory`: `STEM.crt` and `STEM.key`, which must not be there yet.
    pub(super) fn make(directory: &Path, stem: &str, now: Timestamp) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = ca_params();
        hold(&mut params, now, CA_LIFE)?;
        let certificate = params.self_signed(&key)?;
        super::write(directory, stem, &certificate.pem(), &key.serialize_pem())?;
        Ok(Self::of(certificate.pem(), key))
    }

    /// Reads the CA `STEM.crt` and `STEM.key` of `directory`.
    pub(super) fn load(directory: &Path, stem: &str) -> Result<Self, PkiError> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.to_owned(), source });
        let (certificate, key) = (directory.join(format!("{stem}.crt")), directory.join(format!("{stem}.key")));
        let pem = read(&certificate)?;
        let key = KeyPair::from_pem(&read(&key)?).map_err(|source| PkiError::CaKey { path: key, source })?;
        match Pem::iter_from_buffer(pem.as_bytes()).flatten().any(|pem| certifies(&pem, &key)) {
            true => Ok(Self::of(pem, key)),
            false => Err(PkiError::Pair { path: certificate }),
        }
    }

    fn of(pem: String, key: KeyPair) -> Self {
        let id = KeyId::of_public_key(&key.subject_public_key_info());
        Self { pem, key: id, issuer: Issuer::new(ca_params(), key) }
    }

    /// Its certificate.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key.
    pub(super) fn key(&self) -> KeyId {
        self.key
    }

    /// Signs `message`.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        Ok(self.issuer.key().sign(message)?)
    }

    /// A certificate of `life` for `identity` and the key of `request` (PKCS#10, PEM), whose names are ignored.
    pub(super) fn answer(
        &self,
        request: &str,
        identity: &Identity,
        life: SignedDuration,
        now: Timestamp,
    ) -> Result<Made, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request).map_err(PkiError::Request)?;
        self.issue(&request.public_key, identity, life, now)
    }

    /// A certificate of `life` for `identity` and `key`.
    pub(super) fn issue(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        life: SignedDuration,
        now: Timestamp,
    ) -> Result<Made, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&stem(identity));
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.extended_key_usages = match identity {
            Identity::Scanner(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
            // With ClientAuth, an agent that tries to command another is told 403 by name instead of
            // failing somewhere in the handshake.
            Identity::Agent(_) => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let validity = hold(&mut params, now, life)?;
        let certificate = params.signed_by(key, &self.issuer)?.pem();
        Ok(Made { certificate, key: KeyId::of_public_key(&key.subject_public_key_info()), validity })
    }
}

/// The file name, without its ending, of what belongs to `identity`.
pub(super) fn stem(identity: &Identity) -> String {
    match identity {
        Identity::Scanner(name) => format!("scanner-{name}"),
        Identity::Agent(name) => format!("agent-{name}"),
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Deadlight CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn hold(params: &mut CertificateParams, now: Timestamp, life: SignedDuration) -> Result<Validity, PkiError> {
    let calendar = |_| PkiError::Lifetime { days: life.as_hours() / 24 };
    let from = now.checked_sub(BACKDATED).map_err(calendar)?.as_second().max(0);
    let to = now.checked_add(life).map_err(calendar)?.as_second();
    if to > LAST_SECOND {
        return Err(PkiError::Lifetime { days: life.as_hours() / 24 });
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let after = |second: i64| epoch + std::time::Duration::from_secs(u64::try_from(second).unwrap_or(0));
    (params.not_before, params.not_after) = (after(from), after(to));
    let at = |second| Timestamp::from_second(second).map_err(|_| PkiError::Lifetime { days: life.as_hours() / 24 });
    Ok(Validity { from: at(from)?, to: at(to)? })
}

fn certifies(pem: &Pem, key: &KeyPair) -> bool {
    pem.parse_x509().is_ok_and(|certificate| certificate.public_key().raw == key.subject_public_key_info())
}
