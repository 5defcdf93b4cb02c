//! `check-config`: what a configuration means, or what is wrong with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
pub(super) use deadlight_shared::allowlist::today;
use deadlight_shared::hint::HintExt as _;
use deadlight_shared::tls::{Credentials, TlsError};
use deadlight_shared::{Identity, Name, config};
use jiff::Timestamp;
use jiff::civil::Date;

use super::alert;
use super::allowlist::{self, SIGN};
use super::{Exit, Failure, print};
use crate::alert::{Heartbeat, Sink};
use crate::config::{Config, TrustSource};
use crate::deliver::Agent;
use crate::pki::Registry;
use crate::probe::Payloads;
use crate::pull::{Hub, Purpose};
use crate::upkeep;
use crate::web;

/// Where the configuration is.
#[derive(Debug, Args)]
pub(super) struct ConfigFile {
    /// The configuration; `--print-config` shows one
    #[arg(long, value_name = "FILE", default_value = "/etc/deadlight-scanner/scanner.toml")]
    pub(super) config: PathBuf,
}

/// A configuration with all that it names.
pub(super) struct Checked {
    pub(super) config: Config,
    pub(super) credentials: Option<Credentials>,
    pub(super) payloads: Payloads,
    pub(super) sinks: Vec<Sink>,
    pub(super) heartbeat: Option<Heartbeat>,
}

pub(super) fn run(file: ConfigFile) -> Result<Exit, Failure> {
    let today = today(Timestamp::now());
    let Checked { config, .. } = everything(&file.config, today)?;
    let addresses: usize = config.nodes.iter().map(|node| node.addresses.len()).sum();
    let mut text = format!(
        "{} is good (nodes: {}, addresses: {addresses}, ports at each: {}, agents: {})\n",
        file.config.display(),
        config.nodes.len(),
        config.ports.len(),
        config.nodes.iter().filter(|node| node.agent.is_some()).count()
    );
    for warning in config.expired(today) {
        text += &format!("warning: {warning}\n");
    }
    text += &match allowlist::load(&config.signed)? {
        None if config.allowlist.in_force(today).next().is_none() => String::new(),
        None => format!(
            "note: {} is not there: agents that know an operator's key open nothing; {SIGN}\n",
            config.signed.display()
        ),
        Some(permits) => {
            let unsigned = allowlist::unsigned(&config, &permits, today);
            unsigned.iter().map(|unsigned| format!("warning: {unsigned}; {SIGN}\n")).collect()
        }
    };
    print(&text)
}

/// The configuration at `path`, and the files that it names.
pub(super) fn everything(path: &Path, today: Date) -> Result<Checked, Failure> {
    let config = load(path, today)?;
    let credentials = credentials(&config)?;
    registry(&config)?;
    let payloads = payloads(config.payloads.as_deref())?;
    let sinks = alert::sinks(&config)?;
    let heartbeat = alert::heartbeat(&config)?;
    if let Some(web) = &config.web {
        web::check(web).hint("openssl rand -hex 32 makes one; the file holds nothing else")?;
    }
    Ok(Checked { config, credentials, payloads, sinks, heartbeat })
}

/// The checked configuration at `path`.
pub(super) fn load(path: &Path, today: Date) -> Result<Config, Failure> {
    Ok(Config::load(path, today).hint("compare with: deadlight-scanner --print-config")?)
}

/// What UDP probes say: the built-in payloads behind those of the file at `path`.
pub(super) fn payloads(path: Option<&Path>) -> Result<Payloads, Failure> {
    let builtin = Payloads::builtin();
    let Some(path) = path else { return Ok(builtin) };
    let own = config::load(path).hint("an entry: [[payload]] name = \"dns\" ports = \"53\" hex = \"444c 0100 …\"")?;
    Ok(builtin.extended_by(&own))
}

/// Who is enrolled and who is revoked; `None` without a CA of our own, and before its first change.
pub(super) fn registry(config: &Config) -> Result<Option<Registry>, Failure> {
    match &config.trust {
        Some(TrustSource::Pki(pki)) => {
            Ok(pki.read().hint("restore it from a backup: it alone says who is enrolled and who is revoked")?)
        }
        _ => Ok(None),
    }
}

/// The way to every agent, by the certificate that we have now; to those that call us only by way of `hub`.
pub(super) fn agents(config: &Config, hub: Option<&Hub>) -> Result<BTreeMap<Name, Agent>, Failure> {
    let Some(credentials) = credentials(config)? else { return Ok(BTreeMap::new()) };
    let (registry, nodes) = (registry(config)?, upkeep::with_agent(config));
    Ok(upkeep::agents(nodes, &credentials, registry.as_ref(), hub, Purpose::Work, Timestamp::now())?)
}

/// Our certificate, which must be a scanner's and carry the name of this vantage point; `None`
/// when no node has an agent.
pub(super) fn credentials(config: &Config) -> Result<Option<Credentials>, Failure> {
    let Some(source) = config.trust.as_ref().filter(|_| config.nodes.iter().any(|node| node.agent.is_some())) else {
        return Ok(None);
    };
    let loaded = match source {
        TrustSource::Pki(pki) => pki.credentials(&config.vantage),
        TrustSource::Files(paths) => Credentials::load(paths),
    };
    let hint = match &loaded {
        Ok(credentials) if *credentials.identity() == Identity::Scanner(config.vantage.clone()) => String::new(),
        Ok(credentials) => {
            let found = credentials.identity();
            return Err(format!("the certificate is for {found}, but [vantage] id is {}", config.vantage).into());
        }
        Err(TlsError::KeyExposed { path, .. }) => format!("chmod 600 {}", path.display()),
        Err(_) => format!("deadlight-scanner pki issue-scanner {} --dir DIR", config.vantage),
    };
    Ok(loaded.map(Some).hint(hint)?)
}
