//! A file is replaced whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Replaces `path` by `bytes`: written beside it, synced, renamed over it, directory synced.
/// A reader, and a crash at any instant, sees the old file or the new one. `mode` is the file's
/// permission bits, such as `0o600`. It belongs to whom the directory belongs to.
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

/// Reads a private key; one that others may read as well is a [`io::ErrorKind::PermissionDenied`] error.
pub fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let text = format!("it is readable by others (mode {mode:o}): chmod 600 {}", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes what writers of `path` left beside it that were killed in the middle; none of them may be at work.
pub fn sweep(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory_of(path))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&temporary_name(path)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Opens `path` to be locked, and makes it where it is missing; it belongs to whom the directory belongs to. Anything but a
/// plain file with one name is an error: a service could lead root astray by what it puts there.
pub fn open_lock(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let astray = || {
        let text = format!("it is no file of its own: rm {}", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let opened = File::options().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path);
    let lock = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => astray(),
        _ => error,
    })?;
    let own = lock.metadata()?;
    if !own.is_file() || own.nlink() != 1 {
        return Err(astray());
    }
    give_to_owner_of(directory_of(path), &lock)?;
    Ok(lock)
}

fn temporary_beside(path: &Path, mode: u32) -> io::Result<(tempfile::NamedTempFile, &Path)> {
    let directory = directory_of(path);
    let (name, permissions) = (temporary_name(path), Permissions::from_mode(mode));
    let file = tempfile::Builder::new().prefix(&name).permissions(permissions).tempfile_in(directory)?;
    give_to_owner_of(directory, file.as_file())?;
    Ok((file, directory))
}

/// What the names of files begin with that are to become `path`.
fn temporary_name(path: &Path) -> String {
    format!(".new-{}-", path.file_name().unwrap_or_default().display())
}

/// Where `path` lies; of a mere name that is the working directory.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A command that root runs leaves a service's directory such that the service can go on.
pub fn give_to_owner_of(directory: &Path, file: &File) -> io::Result<()> {
    let (owner, own) = (fs::metadata(directory)?, file.metadata()?);
    match own.uid() == 0 && owner.uid() != 0 {
        true => fchown(file, Some(owner.uid()), Some(owner.gid())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (state, identity) = (directory.path().join("state.json"), directory.path().join("identity.json"));
        create_new(&state, b"kept", 0o600).unwrap();
        let (left, _) = temporary_beside(&state, 0o600).unwrap();
        std::mem::forget(left);
        let (mut at_work, _) = temporary_beside(&identity, 0o600).unwrap();
        sweep(&state).unwrap();
        at_work.write_all(b"another's").unwrap();
        at_work.persist(&identity).unwrap();
        let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        assert_eq!(names, ["identity.json", "state.json"]);
    }

    #[test]
    fn a_secret_that_others_may_read_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.key");
        create_new(&path, b"secret", 0o600).unwrap();
        assert_eq!(read_secret(&path).unwrap(), b"secret");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = read_secret(&path).unwrap_err();
        assert!(error.to_string().contains("readable by others (mode 640)"), "{error}");
    }

    #[test]
    fn a_lock_is_a_file_of_its_own_and_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let (lock, other) = (directory.path().join("lock"), directory.path().join("shadow"));
        fs::write(&other, "secret").unwrap();
        std::os::unix::fs::symlink(&other, &lock).unwrap();
        assert!(open_lock(&lock).unwrap_err().to_string().contains("no file of its own"));
        fs::remove_file(&lock).unwrap();
        fs::hard_link(&other, &lock).unwrap();
        assert!(open_lock(&lock).unwrap_err().to_string().contains("no file of its own"));
        fs::remove_file(&lock).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"secret");
        for _ in 0..2 {
            open_lock(&lock).unwrap();
        }
        fs::remove_file(&lock).unwrap();
        fs::create_dir(&lock).unwrap();
        open_lock(&lock).unwrap_err();
    }

    #[test]
    fn what_root_writes_belongs_to_the_directorys_owner() {
        let directory = tempfile::tempdir().unwrap();
        // Only root can give a directory away; anybody else's files are their own.
        let given = std::os::unix::fs::chown(directory.path(), Some(4711), Some(4712)).is_ok();
        let owner = if given { (4711, 4712) } else { owner_of(directory.path()) };
        replace(&directory.path().join("state.json"), b"x", 0o600).unwrap();
        create_new(&directory.path().join("lock"), b"", 0o600).unwrap();
        assert_eq!(owner_of(&directory.path().join("state.json")), owner);
        assert_eq!(owner_of(&directory.path().join("lock")), owner);
    }

    fn owner_of(path: &Path) -> (u32, u32) {
        let metadata = fs::metadata(path).unwrap();
        (metadata.uid(), metadata.gid())
    }

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
