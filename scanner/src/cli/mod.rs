//! The command line: arguments in, exit status out.

mod alert;
mod allow;
mod allowlist;
mod check;
mod diff;
mod doctor;
mod enroll;
mod exit;
mod explain;
#[doc(hidden)]
pub mod fuzzing;
mod manual;
mod past;
mod pki;
mod run;
mod scan;
mod story;
mod support;
mod sweep;

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use deadlight_shared::{hint, log, memory};

use crate::config::TEMPLATE;
use exit::Exit;

type Failure = Box<dyn Error + Send + Sync>;

/// Finds open ports from outside, has them closed by the agent on the node, and proves that they
/// are.
#[derive(Debug, Parser)]
#[command(name = "deadlight-scanner", version, arg_required_else_help = true, after_help = exit::HELP)]
struct Arguments {
    /// Print a commented configuration with all defaults, and exit
    #[arg(long, exclusive = true)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at targets once; no agent, no configuration
    #[command(after_help = exit::HELP)]
    Scan(scan::Arguments),
    /// Sweep, order, prove, over and over
    #[command(after_help = run::HELP)]
    Run(run::Arguments),
    /// Have the scanner that runs sweep at once
    #[command(subcommand)]
    Sweep(sweep::Command),
    /// Say whether anything is open that should not be, and how good that knowledge is
    #[command(after_help = past::status::HELP)]
    Status(past::status::Arguments),
    /// List what is open that should not be
    #[command(after_help = past::findings::HELP)]
    Findings(past::findings::Arguments),
    /// Say why a port is open: ask the agent on its node
    Explain(explain::Arguments),
    /// Tell what became of findings, and why
    History(past::history::Arguments),
    /// Tell nobody of a finding for a while
    Silence(past::silence::Arguments),
    /// Copy the database, also while a scanner runs
    Backup(past::backup::Arguments),
    /// Compare two saved scans, or the last two sweeps
    #[command(after_help = diff::HELP)]
    Diff(diff::Arguments),
    /// Invite a node: print the line to run there, and wait until it has its certificate
    Enroll(enroll::Arguments),
    /// Make the deployment's own CA and its certificates
    #[command(subcommand)]
    Pki(pki::Command),
    /// Make an entry of the allowlist for a port that is meant to be open
    Allow(allow::Arguments),
    /// Sign the allowlist with the operator's key
    #[command(subcommand)]
    Allowlist(allowlist::Command),
    /// Try the places that alerts are sent to
    #[command(subcommand)]
    Alert(alert::Command),
    /// Read a configuration and say what is wrong with it
    CheckConfig(check::ConfigFile),
    /// Say what keeps this scanner from seeing, closing, proving or telling, and what to do about it
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::Arguments),
    /// Write what somebody who helps has to know, without secrets: one object
    SupportBundle(support::Arguments),
    /// Print what a shell needs to complete commands
    Completions(manual::Completions),
    /// Print the manual page
    Man(manual::Manual),
}

/// What can be said on the command line, for shells, for manuals, and for whoever checks what is written about it.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let kept = memory::keep().map_err(|error| format!("failed to keep the memory of this process to itself: {error}"));
    let result = kept.map_err(Failure::from).and_then(|()| match arguments.command {
        None => print(TEMPLATE),
        Some(Command::Scan(arguments)) => with_runtime("warn", scan::run(arguments)),
        Some(Command::Run(arguments)) => with_runtime("info", run::run(arguments)),
        Some(Command::Sweep(command)) => with_runtime("warn", sweep::run(command)),
        Some(Command::Status(arguments)) => with_runtime("warn", past::status::run(arguments)),
        Some(Command::Findings(arguments)) => with_runtime("warn", past::findings::run(arguments)),
        Some(Command::Explain(arguments)) => with_runtime("warn", explain::run(arguments)),
        Some(Command::History(arguments)) => with_runtime("warn", past::history::run(arguments)),
        Some(Command::Silence(arguments)) => with_runtime("warn", past::silence::run(arguments)),
        Some(Command::Backup(arguments)) => with_runtime("warn", past::backup::run(arguments)),
        Some(Command::Diff(arguments)) => with_runtime("warn", diff::run(arguments)),
        Some(Command::Enroll(arguments)) => with_runtime("warn", enroll::run(arguments)),
        Some(Command::Pki(command)) => pki::run(command),
        Some(Command::Allow(arguments)) => allow::run(arguments),
        Some(Command::Allowlist(command)) => allowlist::run(command),
        Some(Command::Alert(command)) => with_runtime("warn", alert::run(command)),
        Some(Command::CheckConfig(file)) => check::run(file),
        Some(Command::Doctor(arguments)) => with_runtime("warn", doctor::run(arguments)),
        Some(Command::SupportBundle(arguments)) => with_runtime("warn", support::run(arguments)),
        Some(Command::Completions(arguments)) => manual::completions(&arguments),
        Some(Command::Man(arguments)) => manual::manual(&arguments),
    });
    let exit = result.unwrap_or_else(|error| {
        let shown = hint::render(error.as_ref());
        // Nobody is left to tell when standard error is gone as well.
        let _written = writeln!(anstream::stderr(), "{shown}");
        Exit::Error
    });
    exit.into()
}

/// One thread: a sweep waits for the network, not for the processor.
fn with_runtime(level: &str, work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    log::init(level);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Writes `text` to standard output.
fn print(text: &str) -> Result<Exit, Failure> {
    written(anstream::stdout().write_all(text.as_bytes()))?;
    Ok(Exit::Fine)
}

/// A reader that has gone away has seen enough: that is no error.
fn written(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    })
}

/// `1 node`, `2 nodes`, `2 addresses`.
fn counted(count: usize, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        _ if word.ends_with('s') => format!("{count} {word}es"),
        _ => format!("{count} {word}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        command().debug_assert();
    }
}
