//! `pki`: the CA and its certificates.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use deadlight_shared::hint::HintExt as _;
use deadlight_shared::{Identity, Name};
use jiff::Timestamp;

use super::{Exit, Failure, print};
use crate::pki::{Issued, Pki, PkiError};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a CA: DIR/ca.crt and DIR/ca.key
    Init {
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
    let now = Timestamp::now();
    let issued = match command {
        Command::Init { directory } => Pki::at(&directory.dir).init(now),
        Command::IssueScanner { id, directory, life } => {
            Pki::at(&directory.dir).issue(&Identity::Scanner(id), life.days, now)
        }
        Command::IssueAgent { node, directory, life } => {
            Pki::at(&directory.dir).issue(&Identity::Agent(node), life.days, now)
        }
    };
    let Issued { certificate, key } = hinted(issued)?;
    print(&format!("wrote {} and {}\n", certificate.display(), key.display()))
}

fn hinted(issued: Result<Issued, PkiError>) -> Result<Issued, Failure> {
    let hint = match &issued {
        Err(PkiError::Exists { .. }) => "move the old files away first, or choose another name or --dir",
        Err(PkiError::Read { .. }) => "make the CA first: deadlight-scanner pki init --dir DIR",
        _ => return Ok(issued?),
    };
    Ok(issued.hint(hint)?)
}
