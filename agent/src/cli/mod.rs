//! The command line: each subcommand in a few lines over [`Node`].

mod daemon;
mod doctor;
mod enroll;
mod harden;
mod helper;
mod keep;
mod manual;
mod show;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::{CommandFactory as _, Parser, Subcommand};
use deadlight_shared::hint::{self, HintExt as _, Hinted};
use deadlight_shared::{Name, Port, PortSet, memory};

use crate::config::{Config, SAMPLE};
use crate::firewall::Linux;
use crate::inventory::listeners::View;
use crate::ledger::LedgerError;
use crate::node::{Node, NodeError, Selection, host_name};

/// Says why a port of this node is open, and closes it.
///
/// Exit status: 0 all is as it should be; 1 something is not (plan: there are changes, status: not in force, doctor: something
/// is wrong, harden and revert: done, but the state could not be saved); 2 usage, configuration or run-time error.
#[derive(Debug, Parser)]
#[command(name = "deadlight-agent", version, arg_required_else_help = true)]
struct Args {
    /// Configuration file [default: /etc/deadlight/agent.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask the helpers that serve docker.sock and listeners.sock in this directory, so that neither Docker's own socket
    /// nor a look at other users' processes is needed
    #[arg(long, global = true, value_name = "DIRECTORY")]
    helpers: Option<PathBuf>,
    /// In a container: the directory where it finds the node's /proc, and Docker's socket under its own path
    #[arg(long, global = true, value_name = "DIRECTORY", env = "DEADLIGHT_HOST", conflicts_with = "helpers")]
    host: Option<PathBuf>,
    /// Print the commented default configuration and exit
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take the line that `deadlight-scanner enroll` printed: make a key here and get its certificate
    Enroll(enroll::Arguments),
    /// Listen for scanners and keep closed what shall be closed
    Run {
        /// Where this node is not enrolled yet: a file with the line, such as a Docker secret
        #[arg(long, value_name = "FILE")]
        enroll_file: Option<PathBuf>,
    },
    /// Put the rules of the ledger back, asking neither Docker nor the network: for boot, before Docker
    Restore,
    /// Close everything that Docker publishes to the outside, but what is allowed; needs no scanner
    Harden {
        /// Published ports that stay open, such as 80/tcp,443/tcp
        #[arg(long, value_name = "PORTS")]
        allow: PortSet,
        /// Once, then exit; without it, again every few seconds until stopped
        #[arg(long)]
        once: bool,
        /// Print the exact lines and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Say why a port is open and what is done about it
    Explain {
        /// Such as 8080/tcp
        port: Port,
        /// The node's address at which it was seen open
        #[arg(long)]
        address: Option<std::net::IpAddr>,
    },
    /// Print the exact lines that would bring the kernel in line; status 1 if there are any
    Plan,
    /// Print mode, closed ports and problems; status 1 if the rules are not in force
    Status,
    /// Say what keeps this node from closing, keeping closed or being told, each with its remedy; status 1 if something is
    /// wrong. It only looks
    Doctor {
        #[arg(long, value_enum, default_value_t = doctor::Output::Table)]
        output: doctor::Output,
    },
    /// Print our own rules as they stand in the kernel
    Rules,
    /// Open again what the agent closed
    Revert {
        /// Such as 8080/tcp
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        port: Option<Port>,
        /// Everything: leave the tables as if the agent had never run
        #[arg(long)]
        all: bool,
    },
    /// Check the configuration file and exit
    CheckConfig,
    /// Helper: pass the agent's questions, and no others, on to Docker
    ///
    /// Standard input is the listening socket. Started by deadlight-docker.socket.
    DockerGate {
        /// Docker's own socket
        #[arg(long, value_name = "FILE", default_value = "/var/run/docker.sock")]
        docker_socket: PathBuf,
    },
    /// Helper: tell who listens on this node
    ///
    /// Standard input is the listening socket. Started by deadlight-listeners.socket.
    Listeners,
    /// Print what a shell needs to complete commands
    Completions(manual::Completions),
    /// Print the manual page
    Man(manual::Manual),
}

/// What can be said on the command line, for whoever checks what is written about it.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_config {
        return finish(print(SAMPLE).map(|()| ExitCode::SUCCESS));
    }
    let Some(command) = args.command else {
        return finish(Err(anyhow!("no command; try --help")));
    };
    if let Err(error) = memory::keep() {
        return finish(Err(error).context("failed to keep the memory of this process to itself"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    finish(
        runtime
            .context("failed to start the runtime")
            .and_then(|runtime| runtime.block_on(dispatch(command, args.config, args.helpers, args.host))),
    )
}

async fn dispatch(
    command: Command,
    path: Option<PathBuf>,
    helpers: Option<PathBuf>,
    host: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let mut config = match command {
        // They run where they cannot read the file, or speak of the command line alone.
        Command::DockerGate { .. } | Command::Listeners | Command::Completions(_) | Command::Man(_) => {
            Config::default()
        }
        _ => Config::load(path.as_deref()).hint("deadlight-agent --print-config shows every key with its default")?,
    };
    if let Some(directory) = helpers {
        config.docker_socket = directory.join("docker.sock");
        config.listeners = View::Helper(directory.join("listeners.sock"));
    }
    if let Some(host) = host {
        let socket = config.docker_socket.strip_prefix("/").context("docker_socket is no absolute path")?;
        config.docker_socket = host.join(socket);
        config.listeners = View::Host(host.join("proc"));
    }
    match command {
        Command::Enroll(arguments) => enroll::run(&config, arguments).await,
        Command::Run { enroll_file } => daemon::run(config, enroll_file.as_deref()).await,
        Command::Restore => show::restore(&node(config)?).await,
        Command::Harden { allow, once, dry_run } => harden::harden(&node(config)?, &allow, once, dry_run).await,
        Command::Explain { port, address } => show::explain(&node(config)?, port, address).await,
        Command::Plan => show::plan(&node(config)?).await,
        Command::Status => show::status(&node(config)?).await,
        Command::Doctor { output } => doctor::run(&config, output).await,
        Command::Rules => show::rules(&node(config)?).await,
        Command::Revert { port, .. } => {
            let selection = port.map_or(Selection::All, Selection::Port);
            show::revert(&node(config)?, selection).await
        }
        Command::CheckConfig => {
            if config.tls.is_some() {
                enroll::keyring(&config)?;
            }
            let theirs = "copy operator.pub, which `deadlight-scanner pki init --operator-key` wrote beside the CA";
            config.operator().hint(theirs)?;
            print("the configuration is good\n")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::DockerGate { docker_socket } => helper::docker_gate(docker_socket).await,
        Command::Listeners => helper::listeners().await,
        Command::Completions(arguments) => manual::completions(&arguments),
        Command::Man(arguments) => manual::manual(&arguments),
    }
}

fn node(config: Config) -> anyhow::Result<Node> {
    let name: Option<Name> = config.node.clone().or_else(host_name);
    let name = name.ok_or_else(|| anyhow!("the host name is no node name; set node = \"…\" in the configuration"))?;
    Ok(Node::new(name, config, Box::new(Linux)))
}

/// Adds what the reader can do about a node's error.
fn hinted(error: NodeError) -> anyhow::Error {
    match error.remedy() {
        Some(remedy) => Hinted::new(error, remedy).into(),
        None => error.into(),
    }
}

/// Data for the reader, with colours on a terminal alone, or for the next program. A closed pipe is not our error.
fn print(text: &str) -> anyhow::Result<()> {
    match anstream::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("failed to write the output"),
        _ => Ok(()),
    }
}

/// What an operator must know when the ledger could not be saved.
fn warn_unsaved(unsaved: Option<&LedgerError>, consequence: &str) {
    if let Some(error) = unsaved {
        let chain = hint::render(error);
        let chain = chain.trim_start_matches("error: ");
        let _best_effort = writeln!(io::stderr(), "warning: state not persisted: {chain}; {consequence}");
    }
}

fn complain(error: &anyhow::Error) {
    let _best_effort = writeln!(io::stderr(), "{}", hint::render(&**error));
}

fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(2)
    })
}
