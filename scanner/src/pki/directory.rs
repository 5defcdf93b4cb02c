//! The directory of the CA: keys, certificates, and `registry.json`, which is changed under a lock and replaced whole.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use deadlight_shared::tls::{Credentials, TlsError, TlsPaths};
use deadlight_shared::trust::{SignedTrust, Trust};
use deadlight_shared::{Identity, Name, file};
use jiff::{SignedDuration, Timestamp};
use rcgen::KeyPair;

use super::authority::{Authority, Made, stem};
use super::registry::{AuthorityName, LIFE, Registry};
use super::rotation::Rotation;
use super::{Issued, PkiError};

/// Stem of the first CA's files.
const FIRST: &str = "ca";
const REGISTRY: &str = "registry.json";
/// All CAs that are trusted, for scanners whose certificates are made by hand.
const AUTHORITIES: &str = "authorities.crt";

/// The CA's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pki {
    pub(super) directory: PathBuf,
}

impl Pki {
    /// The CA in `directory`; nothing is read yet.
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Makes a CA: `ca.crt` and `ca.key`, and an empty registry.
    pub fn init(&self, now: Timestamp) -> Result<Issued, PkiError> {
        let made = |source| PkiError::Directory { path: self.directory.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(made)?;
        Authority::make(&self.directory, FIRST, now)?;
        self.change(now, |_, _| Ok(()))?;
        Ok(self.files(FIRST))
    }

    /// Makes key and certificate of `identity` for `days` days: `scanner-ID.crt` or `agent-NODE.crt`, and the key.
    pub fn issue(&self, identity: &Identity, days: u32, now: Timestamp) -> Result<Issued, PkiError> {
        let stem = stem(identity);
        super::refuse_existing(&self.files(&stem))?;
        let key = KeyPair::generate()?;
        let life = SignedDuration::from_hours(24 * i64::from(days));
        // On record before it is anywhere else, or it could not be revoked.
        let made = self.change(now, |registry, authority| {
            let made = authority.issue(&key, identity, life, now)?;
            registry.record(identity.clone(), made.key, made.validity);
            // Where its files go is the operator's affair.
            registry.arrived(identity);
            Ok(made)
        })?;
        super::write(&self.directory, &stem, &made.certificate, &key.serialize_pem())
    }

    /// Our own credentials as the scanner `name`, trusting whom the registry says.
    pub fn credentials(&self, name: &Name) -> Result<Credentials, TlsError> {
        let Issued { certificate, key } = self.files(&stem(&Identity::Scanner(name.clone())));
        let credentials = Credentials::load(&TlsPaths { ca: self.files(FIRST).certificate, certificate, key })?;
        match self.read() {
            Ok(Some(registry)) => credentials.with_trust(registry.trust()),
            // Its damage is reported where the registry itself is used.
            Ok(None) | Err(_) => Ok(credentials),
        }
    }

    /// A new certificate for the scanner `name` and the key that it has, when that is due. Whether it was.
    pub fn renew_own(&self, name: &Name, now: Timestamp) -> Result<bool, PkiError> {
        let identity = Identity::Scanner(name.clone());
        let Issued { certificate, key } = self.files(&stem(&identity));
        let pem = fs::read_to_string(&key).map_err(|source| PkiError::Read { path: key.clone(), source })?;
        let pair = KeyPair::from_pem(&pem).map_err(|source| PkiError::Key { path: key, source })?;
        let made = self.change(now, |registry, authority| {
            if !registry.is_due(&identity, now) {
                return Ok(None);
            }
            let made = authority.issue(&pair, &identity, LIFE, now)?;
            registry.record(identity.clone(), made.key, made.validity);
            Ok(Some(made))
        })?;
        let Some(made) = made else { return Ok(false) };
        let write = |source| PkiError::Write { path: certificate.clone(), source };
        file::replace(&certificate, made.certificate.as_bytes(), 0o644).map_err(write)?;
        self.update(now, |registry| {
            registry.arrived(&identity);
            Ok(true)
        })
    }

    /// Uses up the invitation of `node` and makes the certificate for `request`. Of all who come with one line, one gets it.
    pub fn enrol(&self, node: &Name, request: &str, now: Timestamp) -> Result<String, PkiError> {
        self.change(now, |registry, authority| {
            let made = authority.answer(request, &Identity::Agent(node.clone()), LIFE, now)?;
            registry.redeem(node, now)?;
            Ok(taken(registry, node, made))
        })
    }

    /// The next certificate of `node`, for `request`.
    pub fn renew(&self, node: &Name, request: &str, now: Timestamp) -> Result<String, PkiError> {
        self.change(now, |registry, authority| {
            let made = authority.answer(request, &Identity::Agent(node.clone()), LIFE, now)?;
            Ok(taken(registry, node, made))
        })
    }

    /// The next step in the change to another CA, or the step back.
    pub fn rotate(&self, back: bool, now: Timestamp) -> Result<Rotation, PkiError> {
        self.change(now, |registry, _| {
            if back {
                registry.back(now)?;
            } else {
                let next = match registry.rotation {
                    Rotation::Standby { .. } => Some(self.next_authority(now)?),
                    Rotation::Prepared { .. } | Rotation::Switched { .. } => None,
                };
                registry.advance(next, now)?;
            }
            Ok(registry.rotation.clone())
        })
    }

    /// The registry as it is on disk; `None` before the first change.
    pub fn read(&self) -> Result<Option<Registry>, PkiError> {
        let path = self.directory.join(REGISTRY);
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Registry>(&bytes) {
                Ok(registry) if registry.schema == Registry::SCHEMA => Ok(Some(registry)),
                Ok(_) => Err(PkiError::Schema { path }),
                Err(source) => Err(PkiError::Registry { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PkiError::Read { path, source }),
        }
    }

    /// Changes the registry under a lock. What `update` gives counts only when the new registry is on disk; when it fails,
    /// nothing has changed.
    pub fn update<T>(
        &self,
        now: Timestamp,
        update: impl FnOnce(&mut Registry) -> Result<T, PkiError>,
    ) -> Result<T, PkiError> {
        self.change(now, |registry, _| update(registry))
    }

    fn change<T>(
        &self,
        now: Timestamp,
        change: impl FnOnce(&mut Registry, &Authority) -> Result<T, PkiError>,
    ) -> Result<T, PkiError> {
        let _lock = self.lock()?;
        let mut registry = match self.read()? {
            Some(registry) => registry,
            None => first_registry(&Authority::load(&self.directory, FIRST)?)?,
        };
        let signer = Authority::load(&self.directory, &registry.signer.stem)?;
        let result = change(&mut registry, &signer)?;
        registry.prune(now);
        self.sign_trust(&mut registry)?;
        let path = self.directory.join(REGISTRY);
        let bytes = serde_json::to_vec_pretty(&registry).map_err(io::Error::from);
        let written = bytes.and_then(|bytes| match fs::read(&path) {
            // Most looks find nothing to change, and a full disk is no obstacle to those.
            Ok(before) if before == bytes => Ok(()),
            _ => file::replace(&path, &bytes, 0o600),
        });
        written.map_err(|source| PkiError::Write { path, source })?;
        Ok(result)
    }

    /// When somebody else is trusted than the signed document says, there is a new generation of it.
    fn sign_trust(&self, registry: &mut Registry) -> Result<(), PkiError> {
        let pem = |name: &AuthorityName| Ok(Authority::load(&self.directory, &name.stem)?.pem().to_owned());
        let authorities: Vec<_> = registry.trusted().into_iter().map(pem).collect::<Result<_, PkiError>>()?;
        let Trust { generation, authorities: before, revoked } = &registry.trust;
        if authorities == *before && registry.revoked == *revoked {
            return Ok(());
        }
        let path = self.directory.join(AUTHORITIES);
        file::replace(&path, authorities.concat().as_bytes(), 0o644)
            .map_err(|source| PkiError::Write { path, source })?;
        registry.trust = Trust { generation: generation + 1, authorities, revoked: registry.revoked.clone() };
        registry.signed = signed(&registry.trust, &Authority::load(&self.directory, &registry.signer.stem)?)?;
        Ok(())
    }

    fn next_authority(&self, now: Timestamp) -> Result<AuthorityName, PkiError> {
        let taken = |number: &u32| self.files(&format!("{FIRST}-{number}")).key.symlink_metadata().is_ok();
        let number = (2..).find(|number| !taken(number)).unwrap_or(u32::MAX);
        let stem = format!("{FIRST}-{number}");
        let key = Authority::make(&self.directory, &stem, now)?.key();
        Ok(AuthorityName { stem, key })
    }

    fn files(&self, stem: &str) -> Issued {
        let file = |kind: &str| self.directory.join(format!("{stem}.{kind}"));
        Issued { certificate: file("crt"), key: file("key") }
    }

    fn lock(&self) -> Result<File, PkiError> {
        let first = self.files(FIRST).certificate;
        fs::metadata(&first).map_err(|source| PkiError::Read { path: first, source })?;
        let path = self.directory.join("lock");
        let locked = file::open_lock(&path).and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| PkiError::Write { path, source })
    }
}

/// The memory of a CA that has issued nothing on record.
fn first_registry(authority: &Authority) -> Result<Registry, PkiError> {
    let trust = Trust { generation: 1, authorities: vec![authority.pem().to_owned()], revoked: Vec::new() };
    let signed = signed(&trust, authority)?;
    Ok(Registry::new(AuthorityName { stem: FIRST.to_owned(), key: authority.key() }, trust, signed))
}

fn signed(trust: &Trust, authority: &Authority) -> Result<SignedTrust, PkiError> {
    SignedTrust::sign(trust, |message| authority.sign(message))?
}

fn taken(registry: &mut Registry, node: &Name, made: Made) -> String {
    registry.record(Identity::Agent(node.clone()), made.key, made.validity);
    made.certificate
}
