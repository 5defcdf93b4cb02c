//! Looks. Whatever cannot be looked at is a fact, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{Access, access};
use tokio::process::Command;
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::facts::{Door, Facts, Identity, Outside, StateDirectory};
use crate::config::Config;
use crate::firewall::Survey;
use crate::identity::{IdentityError, Keyring};
use crate::inventory::{Listener, docker, has_capability, interfaces, listeners};
use crate::ledger::Store;
use crate::node::{Node, NodeError};

const CAP_NET_ADMIN: u32 = 12;
const LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn gather(node: &Node, config: &Config) -> Facts {
    let has_net_admin = has_capability(CAP_NET_ADMIN);
    let listeners = block_in_place(|| listeners::read(&config.listeners));
    let count = |all: Vec<Listener>| (all.len(), all.iter().filter(|listener| listener.is_hidden).count());
    let listeners = listeners.map(count).map_err(NodeError::Listeners);
    let state = state(&config.state_dir);
    let rules = match (has_net_admin, &listeners, &state.closed) {
        (true, Ok(_), Ok(_)) => Some(node.inspect().await),
        _ => None,
    };
    Facts {
        now: Timestamp::now(),
        mode: node.mode(),
        has_net_admin,
        listeners,
        firewall: has_net_admin.then(|| block_in_place(Survey::take)),
        docker: docker::engine(&config.docker_socket).await,
        has_ipvs: Path::new("/proc/net/ip_vs").exists(),
        outside: outside(&config.outside),
        is_synchronised: is_synchronised().await,
        identity: identity(config),
        operator: config.operator().map(|key| key.is_some()),
        state,
        rules,
        // Without its ledger, the node says so elsewhere.
        concerns: node.concerns().await.unwrap_or_default(),
        door: match (&config.pull, config.scanners.len()) {
            (Some(_), _) => Door::None,
            (None, 0) => Door::Everybody,
            (None, networks) => Door::Networks(networks),
        },
    }
}

fn outside(configured: &[String]) -> Outside {
    let names = match configured {
        [] => block_in_place(interfaces::with_default_route).map_err(NodeError::Routes),
        names => Ok(names.iter().cloned().collect::<BTreeSet<_>>()),
    };
    let setting = |name: &str| -> Option<u8> {
        fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).ok()?.trim().parse().ok()
    };
    // The kernel takes the stricter of the two.
    let strictest = |name: &String| Some((name.clone(), setting(name)?.max(setting("all")?)));
    let rp_filter = names.iter().flatten().filter_map(strictest).collect();
    Outside { names, rp_filter }
}

/// What timesyncd or, asked by timedatectl, the kernel says.
async fn is_synchronised() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let mut ask = Command::new("timedatectl");
    ask.args(["show", "--property=NTPSynchronized", "--value"]).kill_on_drop(true);
    let output = timeout(LIMIT, ask.output()).await.ok()?.ok()?;
    match output.stdout.trim_ascii() {
        b"yes" => Some(true),
        b"no" => Some(false),
        _ => None,
    }
}

fn identity(config: &Config) -> Result<Identity, IdentityError> {
    let keyring = Keyring::load(config.state_dir.clone(), config.tls.as_ref())?;
    Ok(Identity { validity: keyring.validity(), generation: keyring.generation() })
}

fn state(path: &Path) -> StateDirectory {
    let nearest = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let closed = Store::new(path).load().map(|ledger| ledger.closures.len());
    StateDirectory {
        path: path.to_owned(),
        is_there: nearest == path,
        is_writable: access(nearest, Access::WRITE_OK | Access::EXEC_OK).is_ok(),
        closed: closed.map_err(NodeError::Ledger),
    }
}
