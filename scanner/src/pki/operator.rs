//! The operator's key: made here, kept elsewhere.

use std::path::Path;

use deadlight_shared::OperatorSecret;

use super::{Issued, PkiError, create};

/// Makes the operator's key: the private half as `file`, the public half as `operator.pub` in `directory`.
pub fn operator_key(directory: &Path, file: &Path) -> Result<Issued, PkiError> {
    let issued = Issued { certificate: directory.join("operator.pub"), key: file.to_owned() };
    for path in [&issued.certificate, &issued.key] {
        if path.symlink_metadata().is_ok() {
            return Err(PkiError::Exists { path: path.clone() });
        }
    }
    let secret = OperatorSecret::generate()?;
    create(&issued.key, &secret.to_pem()?, 0o600)?;
    create(&issued.certificate, &secret.public()?.to_pem(), 0o644)?;
    Ok(issued)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadlight_shared::OperatorKey;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn both_halves_are_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let (file, public) = (directory.path().join("operator.key"), directory.path().join("operator.pub"));
        operator_key(directory.path(), &file).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let secret = OperatorSecret::from_pem(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(OperatorKey::from_pem(&fs::read(&public).unwrap()).unwrap(), secret.public().unwrap());
        let before = fs::read(&file).unwrap();
        assert!(matches!(operator_key(directory.path(), &file), Err(PkiError::Exists { .. })));
        fs::remove_file(&public).unwrap();
        assert!(matches!(operator_key(directory.path(), &file), Err(PkiError::Exists { .. })));
        assert_eq!((fs::read(&file).unwrap(), public.exists()), (before, false));
    }
}
