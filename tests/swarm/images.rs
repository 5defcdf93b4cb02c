//! The images of `docker/images/`, built by a real engine from the programs under test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use deadlight_tests::{process::run, programs::built};

use crate::{
    lab::{NODES, Node},
    swarm::Swarm,
};

pub(crate) const AGENT: &str = "deadlight-agent:story";
pub(crate) const SCANNER: &str = "deadlight-scanner:story";
/// The fastest engine builds; the images are there afterwards.
pub(crate) const BUILDER: &Node = &NODES[2];

/// Builds both on a node.
pub(crate) fn build(swarm: &Swarm) -> Result<()> {
    contexts(&swarm.lab().shared())?;
    let build = |name, context| {
        swarm.on(BUILDER, &format!("docker build --quiet --tag {name} /lab/images/{context}")).context(context)
    };
    build(AGENT, "agent")?;
    build(SCANNER, "scanner").map(drop)
}

/// Makes what they are built from, `images/agent` and `images/scanner` in `directory`.
pub(crate) fn contexts(directory: &Path) -> Result<()> {
    let programs = directory.join("programs");
    fs::create_dir_all(&programs)?;
    for program in ["deadlight-agent", "deadlight-scanner"] {
        run(Command::new("strip").arg(built(program)?).arg("-o").arg(programs.join(program)))?;
    }
    run(Command::new(source("contexts.sh")).arg(&programs).arg(directory.join("images"))).map(drop)
}

/// A file beside the images' recipes.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/images").join(name)
}
