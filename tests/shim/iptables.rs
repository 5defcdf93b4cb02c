//! The iptables that dockerd sees: one flavour, whatever the machine's alternatives say.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

/// `nft` or `legacy`.
const BACKEND: &str = "DEADLIGHT_LAB_BACKEND";

/// Becomes the real tool; answers the one match (`-m ipvs`) that a kernel without IPVS does not have.
pub(crate) fn run(family: &str, arguments: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let arguments: Vec<_> = arguments.collect();
    if arguments.iter().any(|word| word == "ipvs") {
        return Ok(ExitCode::SUCCESS);
    }
    let backend = env::var(BACKEND).with_context(|| format!("${BACKEND}"))?;
    let tool = format!("/usr/sbin/{family}-{backend}");
    Err(Command::new(&tool).args(arguments).exec()).context(tool)
}
