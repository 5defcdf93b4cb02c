//! The image of all containers: a static busybox and one page.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::process::run;

/// How `docker` calls it. Swarm always asks the registry first: this one refuses at once, without a name to resolve.
pub const NAME: &str = "127.0.0.1:1/web:1";

const BUSYBOX: &str = "/bin/busybox";

/// Writes a root tree in `directory` and returns its archive, for `docker import`.
pub fn archive(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("image");
    for name in ["bin", "www"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).with_context(|| format!("copy {BUSYBOX}\nhint: tests/install.sh"))?;
    for applet in ["httpd", "sh"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("www/index.html"), "hello\n")?;
    let archive = directory.join("image.tar");
    run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."))?;
    Ok(archive)
}
