//! `pki`: the CA and its certificates.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use deadlight_shared::hint::HintExt as _;
use deadlight_shared::{Identity, Name};

use super::{Exit, Failure, print};
use crate::pki::{self, Issued, PkiError};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a CA: DIR/ca.crt and DIR/ca.key
    Init {
        #[command(flatten)]
        directory: Directory,
        /// Make an operator's key besides: its private half is FILE, its public half DIR/operator.pub
        #[arg(long, value_name = "FILE")]
        operator_key: Option<PathBuf>,
    },
    /// Make an operator's key beside a CA that is there: FILE and DIR/operator.pub
    OperatorKey {
        /// The private half
        file: PathBuf,
        #[command(flatten)]
        directory: Directory,
    },
    /// Issue a scanner's certificate: DIR/scanner-ID.crt and .key
    IssueScanner {
        /// Name of the scanner, as in [vantage] id
        #[arg(value_name = "ID")]
        id: Name,
        #[command(flatten)]
        directory: Directory,
        #[command(flatten)]
        life: Life,
    },
    /// Issue an agent's certificate: DIR/agent-NODE.crt and .key
    IssueAgent {
        /// Name of the node, as in [[node]] name and in the agent's configuration
        node: Name,
        #[command(flatten)]
        directory: Directory,
        #[command(flatten)]
        life: Life,
    },
}

#[derive(Debug, Args)]
pub(super) struct Directory {
    /// Where the CA is; keep it away from the nodes
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Life {
    /// Days until the certificate expires
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

pub(super) fn run(command: Command) -> Result<Exit, Failure> {
    let now = SystemTime::now();
    let issued = match command {
        Command::Init { directory, operator_key: None } => pki::init(&directory.dir, now),
        Command::Init { directory, operator_key: Some(file) } => {
            told(&hinted(pki::init(&directory.dir, now))?)?;
            return operator(&directory.dir, &file);
        }
        Command::OperatorKey { file, directory } => return operator(&directory.dir, &file),
        Command::IssueScanner { id, directory, life } => {
            pki::issue(&directory.dir, &Identity::Scanner(id), life.days, now)
        }
        Command::IssueAgent { node, directory, life } => {
            pki::issue(&directory.dir, &Identity::Agent(node), life.days, now)
        }
    };
    told(&hinted(issued)?)
}

fn operator(directory: &Path, file: &Path) -> Result<Exit, Failure> {
    told(&hinted(pki::operator_key(directory, file))?)?;
    print(&format!(
        "take {} away from this host: whoever has it and the scanner's key opens ports\n\
         agents need operator.pub: operator_key in agent.toml\n",
        file.display()
    ))
}

fn told(issued: &Issued) -> Result<Exit, Failure> {
    print(&format!("wrote {} and {}\n", issued.certificate.display(), issued.key.display()))
}

fn hinted(issued: Result<Issued, PkiError>) -> Result<Issued, Failure> {
    let hint = match &issued {
        Err(PkiError::Exists { .. }) => "move the old files away first, or choose another name or --dir",
        Err(PkiError::Read { .. }) => "make the CA first: deadlight-scanner pki init --dir DIR",
        _ => return Ok(issued?),
    };
    Ok(issued.hint(hint)?)
}
