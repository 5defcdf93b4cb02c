//! The operator's key: made here, kept elsewhere.

use std::fs;
use std::io;
use std::path::Path;

use deadlight_shared::{OperatorKey, OperatorSecret};

use super::{Issued, Pki, PkiError, create, refuse_existing};

const PUBLIC: &str = "operator.pub";

impl Pki {
    /// Makes the operator's key: the private half as `file`, the public half as `operator.pub` beside the CA.
    pub fn make_operator_key(&self, file: &Path) -> Result<Issued, PkiError> {
        let issued = Issued { certificate: self.directory.join(PUBLIC), key: file.to_owned() };
        refuse_existing(&issued)?;
        let secret = OperatorSecret::generate()?;
        create(&issued.key, &secret.to_pem()?, 0o600)?;
        create(&issued.certificate, &secret.public()?.to_pem(), 0o644)?;
        Ok(issued)
    }

    /// The public half, if there is one: agents pin it when they enrol, and refuse what is no such key.
    pub fn operator_key(&self) -> Result<Option<String>, PkiError> {
        let path = self.directory.join(PUBLIC);
        match fs::read_to_string(&path) {
            Ok(key) => match OperatorKey::from_pem(key.as_bytes()) {
                Ok(_) => Ok(Some(key)),
                Err(source) => Err(PkiError::OperatorKey { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PkiError::Read { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn both_halves_are_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let (file, public) = (directory.path().join("operator.key"), directory.path().join("operator.pub"));
        let pki = Pki::at(directory.path());
        assert_eq!(pki.operator_key().unwrap(), None);
        pki.make_operator_key(&file).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let secret = OperatorSecret::from_pem(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(
            OperatorKey::from_pem(pki.operator_key().unwrap().unwrap().as_bytes()).unwrap(),
            secret.public().unwrap()
        );
        let before = fs::read(&file).unwrap();
        assert!(matches!(pki.make_operator_key(&file), Err(PkiError::Exists { .. })));
        fs::remove_file(&public).unwrap();
        assert!(matches!(pki.make_operator_key(&file), Err(PkiError::Exists { .. })));
        assert_eq!((fs::read(&file).unwrap(), public.exists()), (before, false));
        fs::copy(&file, &public).unwrap();
        assert!(matches!(pki.operator_key(), Err(PkiError::OperatorKey { .. })), "the private half");
    }
}
