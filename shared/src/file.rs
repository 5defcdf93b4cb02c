//! A file is replaced whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Replaces `path` by `bytes`: written beside it, synced, renamed over it, directory synced.
/// A reader, and a crash at any instant, sees the old file or the new one. `mode` is the file's
/// permission bits, such as `0o600`.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (mut file, directory) = temporary_beside(path, mode)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Like [`replace`], but an existing `path` is an [`io::ErrorKind::AlreadyExists`] error.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (mut file, directory) = temporary_beside(path, mode)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    File::open(directory)?.sync_all()
}

fn temporary_beside(path: &Path, mode: u32) -> io::Result<(tempfile::NamedTempFile, &Path)> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(directory)?;
    Ok((file, directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_refuses_to_overwrite() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        create_new(&path, b"old", 0o600).unwrap();
        assert_eq!(create_new(&path, b"new", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "no temporary file stays");
    }
}
