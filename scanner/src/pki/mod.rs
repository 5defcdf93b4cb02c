//! The deployment's own CA: one key that signs who is a scanner and who is an agent.

mod operator;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deadlight_shared::operator::OperatorKeyError;
use deadlight_shared::{Identity, file};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use x509_parser::pem::Pem;

pub use operator::operator_key;

const CA_LIFE: Duration = days(3_653);
/// A certificate holds a little earlier than it was made, for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(300);

/// The two files of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, readable by all.
    pub certificate: PathBuf,
    /// The private key, readable by its owner.
    pub key: PathBuf,
}

/// Why nothing was issued. Nothing was written either.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The directory cannot be made.
    #[error("failed to make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One of the files is there already.
    #[error("{} is there already, nothing was written", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The CA's key file holds no usable key.
    #[error("failed to read the CA's key from {}", path.display())]
    CaKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// ca.crt and ca.key do not belong together.
    #[error("{} is not the certificate of the key beside it", path.display())]
    Pair {
        /// The certificate.
        path: PathBuf,
    },
    /// A certificate or key cannot be made.
    #[error("failed to make the certificate")]
    Make(#[from] rcgen::Error),
    /// The operator's key cannot be made.
    #[error("failed to make the operator's key")]
    Operator(#[from] OperatorKeyError),
    /// The clock is before 1970, or the lifetime ends after the year 9999.
    #[error("failed to put {days} days of validity on the calendar")]
    Lifetime {
        /// The wanted lifetime.
        days: u32,
    },
}

/// Makes a CA in `directory`: `ca.crt` and `ca.key`.
pub fn init(directory: &Path, now: SystemTime) -> Result<Issued, PkiError> {
    let made = |source| PkiError::Directory { path: directory.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(made)?;
    let key = KeyPair::generate()?;
    let mut params = ca_params();
    validity(&mut params, now, CA_LIFE)?;
    let certificate = params.self_signed(&key)?;
    write(directory, "ca", &certificate.pem(), &key.serialize_pem())
}

/// Issues a certificate for `identity`, valid for `days` days: `scanner-ID.crt` or
/// `agent-NODE.crt`, and the key.
pub fn issue(directory: &Path, identity: &Identity, days: u32, now: SystemTime) -> Result<Issued, PkiError> {
    let issuer = ca(directory)?;
    let key = KeyPair::generate()?;
    let (stem, purposes) = match identity {
        Identity::Scanner(name) => (format!("scanner-{name}"), vec![ExtendedKeyUsagePurpose::ClientAuth]),
        // With ClientAuth, an agent that tries to command another is told 403 by name instead of
        // failing somewhere in the handshake.
        Identity::Agent(name) => {
            (format!("agent-{name}"), vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
        }
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&stem);
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.extended_key_usages = purposes;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, self::days(days))?;
    let certificate = params.signed_by(&key, &issuer)?;
    write(directory, &stem, &certificate.pem(), &key.serialize_pem())
}

const fn days(days: u32) -> Duration {
    Duration::from_secs(days as u64 * 86_400)
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

fn validity(params: &mut CertificateParams, now: SystemTime, life: Duration) -> Result<(), PkiError> {
    let too_long = || PkiError::Lifetime { days: u32::try_from(life.as_secs() / 86_400).unwrap_or(u32::MAX) };
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = now.duration_since(UNIX_EPOCH).map_err(|_| too_long())?;
    let end = now.checked_add(life).filter(|end| end.as_secs() < 253_402_300_800).ok_or_else(too_long)?;
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + end;
    Ok(())
}

/// The CA of `directory`, ready to sign.
fn ca(directory: &Path) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let read =
        |path: &Path| fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.to_owned(), source });
    let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
    let pem = read(&certificate)?;
    let key = KeyPair::from_pem(&read(&key)?).map_err(|source| PkiError::CaKey { path: key, source })?;
    match Pem::iter_from_buffer(pem.as_bytes()).flatten().any(|pem| certifies(&pem, &key)) {
        true => Ok(Issuer::new(ca_params(), key)),
        false => Err(PkiError::Pair { path: certificate }),
    }
}

fn certifies(pem: &Pem, key: &KeyPair) -> bool {
    pem.parse_x509().is_ok_and(|certificate| certificate.public_key().raw == key.subject_public_key_info())
}

/// Writes key and certificate; both or neither, and never over a file that is there.
fn write(directory: &Path, stem: &str, certificate: &str, key: &str) -> Result<Issued, PkiError> {
    let issued =
        Issued { certificate: directory.join(format!("{stem}.crt")), key: directory.join(format!("{stem}.key")) };
    for path in [&issued.certificate, &issued.key] {
        if path.symlink_metadata().is_ok() {
            return Err(PkiError::Exists { path: path.clone() });
        }
    }
    create(&issued.key, key, 0o600)?;
    create(&issued.certificate, certificate, 0o644).inspect_err(|_| {
        if let Err(error) = fs::remove_file(&issued.key) {
            tracing::warn!(path = %issued.key.display(), %error, "failed to remove the key again");
        }
    })?;
    Ok(issued)
}

fn create(path: &Path, pem: &str, mode: u32) -> Result<(), PkiError> {
    file::create_new(path, pem.as_bytes(), mode).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists { path: path.to_owned() },
        _ => PkiError::Write { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadlight_shared::tls::{Credentials, TlsPaths};
    use std::os::unix::fs::PermissionsExt as _;

    fn identity(uri: &str) -> Identity {
        format!("spiffe://deadlight/{uri}").parse().unwrap()
    }

    fn files(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn issued_credentials_load_and_carry_their_identity() {
        let directory = tempfile::tempdir().unwrap();
        let ca = init(directory.path(), SystemTime::now()).unwrap().certificate;
        for who in ["scanner/office-a", "agent/n1"] {
            let issued = issue(directory.path(), &identity(who), 90, SystemTime::now()).unwrap();
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&issued.key), mode(&issued.certificate)), (0o600, 0o644));
            let paths = TlsPaths { ca: ca.clone(), certificate: issued.certificate, key: issued.key };
            let credentials = Credentials::load(&paths).unwrap();
            assert_eq!(*credentials.identity(), identity(who));
            credentials.server_config().unwrap();
        }
        let names =
            ["agent-n1.crt", "agent-n1.key", "ca.crt", "ca.key", "scanner-office-a.crt", "scanner-office-a.key"];
        assert_eq!(files(directory.path()), names);
    }

    #[test]
    fn overwrites_nothing_and_leaves_nothing_half_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        init(path, SystemTime::now()).unwrap();
        let before = fs::read(path.join("ca.key")).unwrap();
        assert!(matches!(init(path, SystemTime::now()), Err(PkiError::Exists { .. })));
        assert_eq!(fs::read(path.join("ca.key")).unwrap(), before);
        fs::write(path.join("agent-n1.crt"), "mine").unwrap();
        let error = issue(path, &identity("agent/n1"), 90, SystemTime::now()).unwrap_err();
        assert!(matches!(error, PkiError::Exists { .. }));
        assert_eq!(files(path), ["agent-n1.crt", "ca.crt", "ca.key"]);
    }

    #[test]
    fn a_foreign_ca_certificate_is_noticed() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        init(one.path(), SystemTime::now()).unwrap();
        init(other.path(), SystemTime::now()).unwrap();
        fs::copy(other.path().join("ca.crt"), one.path().join("ca.crt")).unwrap();
        let error = issue(one.path(), &identity("agent/n1"), 90, SystemTime::now()).unwrap_err();
        assert!(matches!(error, PkiError::Pair { .. }));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            issue(empty.path(), &identity("agent/n1"), 90, SystemTime::now()),
            Err(PkiError::Read { .. })
        ));
    }

    #[test]
    fn a_certificate_holds_from_five_minutes_ago_for_its_days() {
        let directory = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        init(directory.path(), now).unwrap();
        let issued = issue(directory.path(), &identity("agent/n1"), 7, now).unwrap();
        let pem = Pem::iter_from_buffer(&fs::read(issued.certificate).unwrap()).next().unwrap().unwrap();
        let validity = pem.parse_x509().unwrap().validity().clone();
        assert_eq!(validity.not_before.timestamp(), 1_800_000_000 - 300);
        assert_eq!(validity.not_after.timestamp(), 1_800_000_000 + 7 * 86_400);
        let error = issue(directory.path(), &identity("agent/n2"), u32::MAX, now).unwrap_err();
        assert!(matches!(error, PkiError::Lifetime { .. }));
    }
}
