//! `pki`: the CA and its certificates.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use deadlight_shared::hint::{HintExt as _, Hinted};
use deadlight_shared::{Identity, Name};
use jiff::Timestamp;

use super::{Exit, Failure, counted, print};
use crate::pki::{Certificate, Issued, Pki, PkiError, Rotation, RotationError};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a CA: DIR/ca.crt and DIR/ca.key
    Init {
        #[command(flatten)]
        directory: Directory,
        /// Make an operator's key besides: its private half is FILE, its public half DIR/operator.pub
        #[arg(long, value_name = "FILE", conflicts_with = "if_needed")]
        operator_key: Option<PathBuf>,
        #[command(flatten)]
        repeat: Repeat,
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
        #[command(flatten)]
        repeat: Repeat,
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
    /// List who has a certificate, and until when
    List {
        #[command(flatten)]
        directory: Directory,
    },
    /// Revoke every key of a node or a scanner; a running scanner tells the agents within seconds
    Revoke {
        /// Name of the node
        #[arg(required_unless_present = "scanner", conflicts_with = "scanner")]
        node: Option<Name>,
        /// Name of the scanner
        #[arg(long, value_name = "ID")]
        scanner: Option<Name>,
        #[command(flatten)]
        directory: Directory,
    },
    /// Change to another CA, one step at a time: 1. it is trusted, 2. it signs, 3. the former one is trusted no longer
    RotateCa {
        /// Take the last step back
        #[arg(long)]
        back: bool,
        #[command(flatten)]
        directory: Directory,
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
    /// Days until the certificate expires; a running scanner that has the CA renews it before
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

#[derive(Debug, Args)]
pub(super) struct Repeat {
    /// Leave alone what is there already, and be fine: for scripts and containers that say this at each start
    #[arg(long)]
    if_needed: bool,
}

pub(super) fn run(command: Command) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let (issued, if_needed) = match command {
        Command::List { directory } => return list(&Pki::at(&directory.dir)),
        Command::Revoke { node, scanner, directory } => {
            let identity = node.map(Identity::Agent).or(scanner.map(Identity::Scanner));
            let Some(identity) = identity else { return Err("neither a node nor a scanner is named".into()) };
            return revoke(&Pki::at(&directory.dir), &identity, now);
        }
        Command::RotateCa { back, directory } => return rotate(&Pki::at(&directory.dir), back, now),
        Command::Init { directory, operator_key: None, repeat } => {
            (Pki::at(&directory.dir).init(now), repeat.if_needed)
        }
        Command::Init { directory, operator_key: Some(file), .. } => {
            let pki = Pki::at(&directory.dir);
            told(&hinted(pki.init(now))?)?;
            return operator(&pki, &file);
        }
        Command::OperatorKey { file, directory } => return operator(&Pki::at(&directory.dir), &file),
        Command::IssueScanner { id, directory, life, repeat } => {
            (Pki::at(&directory.dir).issue(&Identity::Scanner(id), life.days, now), repeat.if_needed)
        }
        Command::IssueAgent { node, directory, life } => {
            (Pki::at(&directory.dir).issue(&Identity::Agent(node), life.days, now), false)
        }
    };
    match issued {
        Err(PkiError::Exists { path }) if if_needed && is_whole(&path) => {
            print(&format!("{} is there already\n", path.display()))
        }
        issued => told(&hinted(issued)?),
    }
}

/// Whether the other half is there as well: whoever was killed between the two has an identity that nobody can use.
fn is_whole(half: &Path) -> bool {
    ["crt", "key"].iter().all(|end| half.with_extension(end).exists())
}

fn operator(pki: &Pki, file: &Path) -> Result<Exit, Failure> {
    told(&hinted(pki.make_operator_key(file))?)?;
    print(&format!(
        "take {} away from this host: whoever has it and the scanner's key opens ports\n\
         agents that enrol from now on pin operator.pub; others need it as operator_key in agent.toml\n",
        file.display()
    ))
}

fn told(issued: &Issued) -> Result<Exit, Failure> {
    print(&format!("wrote {} and {}\n", issued.certificate.display(), issued.key.display()))
}

fn list(pki: &Pki) -> Result<Exit, Failure> {
    let Some(registry) = pki.read()? else { return print("nothing is on record yet\n") };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["WHO", "UNTIL", "KEY", "TRUST"]);
    for Certificate { identity, key, to, .. } in registry.latest() {
        let told = match identity {
            Identity::Agent(node) if registry.is_told(node) => "told",
            Identity::Agent(_) => "not told yet",
            Identity::Scanner(_) => "",
        };
        table.add_row([identity.to_string(), to.to_string(), key.to_string(), told.to_owned()]);
    }
    print(&format!("{table}\n"))
}

fn revoke(pki: &Pki, identity: &Identity, now: Timestamp) -> Result<Exit, Failure> {
    let revoked = pki.update(now, |registry| Ok(registry.revoke(identity, now)?))?;
    if revoked == 0 {
        return Ok(Err(format!("{identity} has no key that could be revoked"))
            .hint("deadlight-scanner pki list --dir DIR shows who has one")?);
    }
    print(&format!("revoked {} of {identity}\n", counted(revoked, "key")))
}

fn rotate(pki: &Pki, back: bool, now: Timestamp) -> Result<Exit, Failure> {
    let rotated = pki.rotate(back, now).map_err(|error| {
        let hint = match &error {
            PkiError::Rotation(RotationError::Untold(_)) => {
                "run deadlight-scanner run --once and try again; pki revoke who is gone for good"
            }
            PkiError::Rotation(RotationError::Unrenewed(_)) => {
                "deadlight-scanner run renews agents and itself; issue other scanners' certificates anew; pki revoke who is gone"
            }
            PkiError::Read { .. } => "make the CA first: deadlight-scanner pki init --dir DIR",
            _ => "deadlight-scanner pki list --dir DIR shows who has which certificate",
        };
        Hinted::new(error, hint)
    })?;
    print(match rotated {
        Rotation::Prepared { .. } => {
            "step 1 of 3: a next CA is trusted besides the one that signs. The scanner tells its agents; scanners without the \
             CA need authorities.crt as their ca. Then run this again, or with --back\n"
        }
        Rotation::Switched { .. } => {
            "step 2 of 3: the new CA signs, the former one is still trusted. The scanner renews itself and its agents; \
             certificates of other scanners have to be issued anew. Then run this again, or with --back\n"
        }
        Rotation::Standby { former: Some(_) } => {
            "step 3 of 3: one CA is trusted, the new one. --back trusts the former again while its files are here\n"
        }
        Rotation::Standby { former: None } => "back to where it began: one CA is trusted, the one that signs\n",
    })
}

fn hinted(issued: Result<Issued, PkiError>) -> Result<Issued, Failure> {
    let hint = match &issued {
        Err(PkiError::Exists { .. }) => "move the old files away first, or choose another name or --dir",
        Err(PkiError::Read { .. }) => "make the CA first: deadlight-scanner pki init --dir DIR",
        _ => return Ok(issued?),
    };
    Ok(issued.hint(hint)?)
}
