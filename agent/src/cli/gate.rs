//! `docker-gate`: the only process that opens Docker's socket.

use std::path::PathBuf;
use std::process::ExitCode;

use deadlight_shared::hint::HintExt as _;

use super::log_to_stderr;
use crate::gate::{Door, Gate};

pub(super) async fn run(docker: PathBuf) -> anyhow::Result<ExitCode> {
    log_to_stderr();
    let door = Door::from_stdin().hint("systemctl enable --now deadlight-docker.socket starts it when it is needed")?;
    door.run(Gate::new(docker)).await
}
