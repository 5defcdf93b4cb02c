//! `completions` and `man`: what shells and readers want to know of the command line itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use clap_complete::Shell;
use deadlight_shared::hint::HintExt as _;

use super::{command, print};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Manual {
    /// Write a page for each command into this directory, instead of the main one to standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(arguments: &Completions) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    let mut command = command();
    let name = command.get_name().to_owned();
    clap_complete::generate(arguments.shell, &mut command, name, &mut text);
    print(&String::from_utf8(text)?).map(|()| ExitCode::SUCCESS)
}

pub(super) fn manual(arguments: &Manual) -> anyhow::Result<ExitCode> {
    if let Some(directory) = &arguments.dir {
        let made = clap_mangen::generate_to(command(), directory);
        let made = made.with_context(|| format!("failed to write pages into {}", directory.display()));
        made.hint("name a directory that is there and can be written")?;
    } else {
        let mut text = Vec::new();
        clap_mangen::Man::new(command()).render(&mut text)?;
        print(&String::from_utf8(text)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
