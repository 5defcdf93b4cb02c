//! `enroll`: one line for a new node, and the wait for it.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::rand;
use clap::Args;
use deadlight_shared::enrol::{EnrolLine, SECRET_LENGTH, Secret};
use deadlight_shared::hint::{HintExt as _, causes};
use deadlight_shared::tls::Credentials;
use deadlight_shared::{Identity, Name, file as files};
use jiff::Timestamp;
use reqwest::Url;

use super::check::{self, today};
use super::{Exit, Failure, print};
use crate::config::{Config, TrustSource, Way};
use crate::deliver::EnrolError;
use crate::pki::{Certificate, InvitationError, Pki, PkiError, Registry};
use crate::upkeep::{self, UpkeepError};

/// Between two looks whether the node's window is open.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name of the node, as in [[node]] of the configuration
    node: Name,
    #[command(flatten)]
    file: check::ConfigFile,
    /// Print the line and leave the rest to a running `deadlight-scanner run`
    #[arg(long)]
    detach: bool,
    /// Write the line to FILE, which its owner alone can read, instead of printing it
    #[arg(long, value_name = "FILE")]
    line_file: Option<PathBuf>,
    /// Make no line for a node that has a certificate, and be fine: for scripts and containers that say this at each start.
    /// One whose certificate was revoked is not invited
    #[arg(long)]
    if_needed: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let Arguments { node: name, file, detach, line_file, if_needed } = arguments;
    let config = check::load(&file.config, today(Timestamp::now()))?;
    let Some(TrustSource::Pki(pki)) = &config.trust else {
        return Ok(Err("only the scanner that has the CA can enrol; the configuration has no [pki]")
            .hint("run this where `deadlight-scanner pki init` was run, and name its directory in [pki]")?);
    };
    let Some((_, way)) = upkeep::with_agent(&config).find(|(node, _)| node.name == name) else {
        return Ok(Err(format!("the configuration has no [[node]] {name} with an agent")).hint(
            "add it, with agent = \"https://ADDRESS:7443\", or \"pull\" where it shall call, and run this again",
        )?);
    };
    let now = Timestamp::now();
    check::registry(&config)?;
    // The node will know us by the CA that signs now.
    pki.renew_own(&config.vantage, now).hint(format!(
        "the CA's directory needs ca.key, ca.crt and what `deadlight-scanner pki issue-scanner {} --dir DIR` writes",
        config.vantage
    ))?;
    let Some(credentials) = check::credentials(&config)? else { return Ok(Exit::Error) };
    // The node would refuse it, and the line would be spent.
    pki.operator_key()
        .hint("restore it; `openssl pkey -in operator.key -pubout` writes it where the private half is")?;

    if let Some(registry) = pki.read()?.filter(|_| if_needed) {
        if latest_of(&registry, &name).is_some_and(|held| held.arrived) {
            tell(&format!("{name} has a certificate already"));
            return Ok(Exit::Fine);
        }
        // Nobody's script invites again whom somebody has shut out.
        if registry.was_revoked(&Identity::Agent(name.clone())) {
            return Ok(Err(format!("the certificate of {name} was revoked"))
                .hint(format!("`deadlight-scanner enroll {name}`, without --if-needed, takes it back"))?);
        }
    }
    // The file is put in the place of what is there, which must not be /dev/stdout.
    if let Some(path) = line_file.as_ref().filter(|path| path.symlink_metadata().is_ok_and(|there| !there.is_file())) {
        return Ok(Err(format!("{} is there and no plain file", path.display()))
            .hint("name a new file; without --line-file the line is printed")?);
    }
    let mut random = [0; SECRET_LENGTH];
    rand::fill(&mut random).map_err(|_| "failed to get random bytes from the system")?;
    let secret = Secret::new(random);
    let authority = pki.update(now, |registry| {
        registry.invite(name.clone(), secret.verifier(), now);
        Ok(registry.signer())
    })?;
    let line = EnrolLine { node: name.clone(), authority, secret };
    // The line has a secret in it, so it is written once.
    match line_file {
        None => {
            print(&format!("{line}\n"))?;
            tell(&format!("On {name}, as root, within 10 minutes:  deadlight-agent enroll LINE  with the line above"));
        }
        Some(path) => {
            let written = files::replace(&path, format!("{line}\n").as_bytes(), 0o600);
            written
                .map_err(|error| format!("failed to write the line to {}: {error}", path.display()))
                .hint("say it again with a file that can be written; a line that was made before is void")?;
            tell(&format!(
                "Take {} to {name}; there, as root, within 10 minutes:  deadlight-agent enroll --file FILE",
                path.display()
            ));
        }
    }
    if detach {
        return Ok(Exit::Fine);
    }

    match way {
        Way::Push(url) => call(pki, &credentials, &name, url).await?,
        Way::Pull => await_call(&config, pki, &credentials, &name).await?,
    }
    let registry = pki.read()?;
    let key = registry.and_then(|registry| latest_of(&registry, &name)).map(|held| held.key.to_string());
    tell(&format!("{name} is enrolled; the fingerprint of its key is {}", key.unwrap_or_default()));
    Ok(Exit::Fine)
}

/// Calls the node until it is enrolled. What waiting does not remove is told once, and waited out all the same: somebody
/// may be at work on the node.
async fn call(pki: &Pki, credentials: &Credentials, name: &Name, url: &Url) -> Result<(), Failure> {
    let mut told = BTreeSet::new();
    loop {
        match upkeep::enrol(pki, credentials, name, url, Timestamp::now()).await {
            Ok(()) => return Ok(()),
            // A scanner that runs beside us has seen the invitation too.
            Err(UpkeepError::Pki(PkiError::Invitation(InvitationError::Used { .. }))) => {
                if is_enrolled(pki, name)? {
                    return Ok(());
                }
            }
            Err(error @ UpkeepError::Pki(_)) => return Ok(Err(error).hint(another_line(name))?),
            Err(UpkeepError::Enrol(error @ EnrolError::Undelivered(_))) => {
                return Ok(Err(error).hint(format!(
                    "`deadlight-agent enroll` on {name} says whether it is enrolled; where it is not, {}",
                    another_line(name)
                ))?);
            }
            Err(error) => {
                let text = waiting(&error, name, url);
                if !told.contains(&text) {
                    tell(&text);
                    told.insert(text);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn waiting(error: &UpkeepError, name: &Name, url: &Url) -> String {
    let why = causes(error);
    let obstacle = match error {
        UpkeepError::Enrol(error) => error.obstacle(),
        _ => None,
    };
    match (obstacle, error) {
        (Some(obstacle), _) => {
            format!("{url}: {obstacle}: {why}; waiting until the line expires\nhint: {}", obstacle.hint(name))
        }
        (None, UpkeepError::Enrol(EnrolError::Reach(_))) => format!("waiting for {url}: {why}"),
        (None, _) => why,
    }
}

/// Waits until the node has called and is enrolled, by us or by a scanner that runs beside us.
async fn await_call(config: &Config, pki: &Pki, credentials: &Credentials, name: &Name) -> Result<(), Failure> {
    let _hub = match upkeep::open(config, Some(credentials)) {
        Err(UpkeepError::Listen(error)) if error.source.kind() == io::ErrorKind::AddrInUse => {
            tell(&format!("{} is in use: the scanner that runs here has to meet {name}", error.address));
            None
        }
        opened => opened?,
    };
    while !is_enrolled(pki, name)? {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn is_enrolled(pki: &Pki, name: &Name) -> Result<bool, Failure> {
    let Some(registry) = pki.read()? else { return Err("the CA has forgotten the invitation".into()) };
    Ok(registry.is_enrolled(name, Timestamp::now()).hint(another_line(name))?)
}

fn another_line(name: &Name) -> String {
    format!("deadlight-scanner enroll {name} prints a new line")
}

fn latest_of(registry: &Registry, node: &Name) -> Option<Certificate> {
    let identity = Identity::Agent(node.clone());
    registry.latest().into_iter().find(|certificate| certificate.identity == identity).cloned()
}

/// For the person at the terminal; the line alone is on standard output.
fn tell(text: &str) {
    // Nobody is left to tell when standard error is gone as well.
    let _written = writeln!(io::stderr(), "{text}");
}
