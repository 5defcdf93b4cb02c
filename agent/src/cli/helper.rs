//! `docker-gate` and `listeners`: what the agent has others do for it.

use std::path::PathBuf;
use std::process::ExitCode;

use deadlight_shared::hint::HintExt as _;

use crate::gate::Gate;
use crate::helper::Helper;
use crate::inventory::listeners::tell;
use deadlight_shared::log;

/// The only process that opens Docker's socket.
pub(super) async fn docker_gate(docker: PathBuf) -> anyhow::Result<ExitCode> {
    log::init("info");
    let helper = Helper::on_stdin().hint("systemctl enable --now deadlight-docker.socket")?;
    let gate = Gate::new(docker);
    helper.run(|stream| gate.clone().serve(stream)).await
}

/// The only process that looks into those of others.
pub(super) async fn listeners() -> anyhow::Result<ExitCode> {
    log::init("info");
    let helper = Helper::on_stdin().hint("systemctl enable --now deadlight-listeners.socket")?;
    helper.run(tell).await
}
