//! Docker of other Debian releases, from the root trees that `swarm/lab.sh` builds.
//!
//! A node gets the /usr of such a tree: dockerd, containerd and runc, but also the iptables and nft of that release,
//! for Docker and the agent alike.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::{docker_rules::Backend, dockerd::Dockerd, lab::Wire, process::run};

/// A version of Docker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// That of Debian trixie.
    V26_1,
    /// That of Debian forky.
    V28_5,
}

impl Engine {
    /// A node with this engine, whose `iptables` is that of `backend`.
    pub fn node(self, backend: Backend) -> Result<Wire> {
        let mut wire = Wire::new()?;
        wire.node.furnish(backend)?;
        self.install(&wire)?;
        Ok(wire)
    }

    /// Puts this engine in the place of the one on such a node; what runs there goes on until it is started again.
    pub fn install(self, wire: &Wire) -> Result<()> {
        wire.node.replace_usr(&self.tree()?.join("usr"))
    }

    /// Demands that this is the engine that runs.
    pub fn must_be(self, dockerd: &Dockerd<'_>) -> Result<()> {
        let version = run(dockerd.docker().args(["version", "--format", "{{.Server.Version}}"]))?;
        ensure!(version.starts_with(&self.to_string()), "dockerd is {version}, not {self}");
        Ok(())
    }

    /// The path of the root tree; where there is none it is built, which takes minutes.
    fn tree(self) -> Result<PathBuf> {
        let suite = match self {
            Self::V26_1 => "trixie",
            Self::V28_5 => "forky",
        };
        let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("swarm/lab.sh");
        Ok(run(Command::new(lab).args(["build", suite]))?.trim().into())
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V26_1 => "26.1",
            Self::V28_5 => "28.5",
        })
    }
}
