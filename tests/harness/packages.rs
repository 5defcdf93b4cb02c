//! The Debian packages of the programs under test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};

use crate::{
    process::run,
    programs::{built, finish},
};

const NAMES: [&str; 2] = ["deadlight-agent", "deadlight-scanner"];
/// What they are made from, besides the programs.
const SOURCES: [&str; 6] =
    ["agent/Cargo.toml", "agent/agent.toml", "scanner/Cargo.toml", "docker/debian", "docker/systemd", "CHANGELOG.md"];

/// `deadlight-agent` and `deadlight-scanner`, as `make packages` makes them, but of the programs under test and hardly
/// compressed. Whoever asks first makes them.
pub fn current() -> Result<[PathBuf; 2]> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository")?;
    let programs = [built(NAMES[0])?, built(NAMES[1])?];
    let target = programs[0].ancestors().nth(2).context("the target directory")?.join("test-packages");
    fs::create_dir_all(target.join("release"))?;
    let lock = File::create(target.join("lock"))?;
    lock.lock()?;
    let made = made(&target)?;
    let newest =
        programs.iter().cloned().chain(SOURCES.map(|source| repository.join(source))).map(|path| changed(&path));
    let newest = newest.collect::<Result<Vec<_>>>()?.into_iter().max();
    if made.len() != NAMES.len() || made.iter().any(|package| changed(package).ok() < newest) {
        let debian = target.join("debian");
        if debian.exists() {
            fs::remove_dir_all(&debian)?;
        }
        for (name, program) in NAMES.iter().zip(&programs) {
            run(Command::new("strip").arg("-o").arg(target.join("release").join(name)).arg(program))?;
        }
        let mut build = Command::new(repository.join("docker/debian/build.sh"));
        build.arg(&target).args(["--offline", "--fast", "--no-strip", "--quiet"]).current_dir(repository);
        let ended = finish(&mut build)?;
        ensure!(ended.code()? == 0, "{}\nhint: cargo install --locked cargo-deb, as `make test` does", ended.stderr);
    }
    self::made(&target)?.try_into().map_err(|found| anyhow::anyhow!("not two packages: {found:?}"))
}

/// `package` as if it were of version 0.0.9, and had come with another default configuration.
pub fn older(package: &Path, directory: &Path) -> Result<PathBuf> {
    let (tree, older) = (directory.join("older"), directory.join("older.deb"));
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(&tree))?;
    replace(&tree.join("DEBIAN/control"), "\nVersion: ", "\nVersion: 0.0.9~")?;
    replace(&tree.join("etc/deadlight/agent.toml"), "max_new_per_hour = 20", "max_new_per_hour = 10")?;
    let fast = ["--root-owner-group", "-Zgzip", "-z1", "--build"];
    run(Command::new("dpkg-deb").args(fast).arg(&tree).arg(&older))?;
    Ok(older)
}

fn made(target: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(target.join("debian")) else { return Ok(Vec::new()) };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// When a file, or anything in a directory, changed last.
fn changed(path: &Path) -> Result<SystemTime> {
    let own = fs::metadata(path).with_context(|| path.display().to_string())?;
    if !own.is_dir() {
        return Ok(own.modified()?);
    }
    let inside = fs::read_dir(path)?.map(|entry| changed(&entry?.path())).collect::<Result<Vec<_>>>()?;
    inside.into_iter().max().context("an empty directory")
}

fn replace(file: &Path, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(file)?;
    ensure!(text.contains(from), "{from:?} is not in {}", file.display());
    Ok(fs::write(file, text.replace(from, to))?)
}
