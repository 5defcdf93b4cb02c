//! `completions` and `man`: what shells and readers want to know of the command line itself.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;
use deadlight_shared::hint::HintExt as _;

use super::{Exit, Failure, command, print};

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

pub(super) fn completions(arguments: &Completions) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    let mut command = command();
    let name = command.get_name().to_owned();
    clap_complete::generate(arguments.shell, &mut command, name, &mut text);
    print(&String::from_utf8(text)?)
}

pub(super) fn manual(arguments: &Manual) -> Result<Exit, Failure> {
    match &arguments.dir {
        Some(directory) => {
            let made = clap_mangen::generate_to(command(), directory);
            let made = made.map_err(|error| format!("failed to write pages into {}: {error}", directory.display()));
            made.hint("name a directory that is there and can be written")?;
            Ok(Exit::Fine)
        }
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(command()).render(&mut text)?;
            print(&String::from_utf8(text)?)
        }
    }
}
