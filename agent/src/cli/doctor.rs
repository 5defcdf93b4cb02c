//! `doctor`: what keeps this node from doing all that it should.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;

use super::{node, print};
use crate::config::Config;
use crate::doctor::examine;

/// For whom it is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Output {
    /// People
    Table,
    /// Programs: one object
    Json,
}

pub(super) async fn run(config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let found = examine(&node(config.clone())?, config).await;
    print(&match output {
        Output::Table => found.to_string(),
        Output::Json => serde_json::to_string_pretty(&found).context("failed to write what was found")? + "\n",
    })?;
    Ok(ExitCode::from(u8::from(found.has_wrong())))
}
