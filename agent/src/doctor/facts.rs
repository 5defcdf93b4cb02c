//! What a look at the node has shown. Parts that could not be looked at say why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use deadlight_shared::tls::Validity;
use deadlight_shared::wire::Mode;
use jiff::Timestamp;

use crate::config::OperatorFileError;
use crate::firewall::{Inspection, Survey};
use crate::identity::IdentityError;
use crate::inventory::Engine;
use crate::inventory::docker::DockerError;
use crate::node::NodeError;

/// Everything that is judged.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) now: Timestamp,
    pub(super) mode: Mode,
    pub(super) has_net_admin: bool,
    /// How many sockets listen, and of how many it cannot be seen who holds them.
    pub(super) listeners: Result<(usize, usize), NodeError>,
    /// None without the right to read rules.
    pub(super) firewall: Option<Survey>,
    pub(super) docker: Result<Engine, DockerError>,
    /// Whether the kernel can serve a routing mesh.
    pub(super) has_ipvs: bool,
    pub(super) outside: Outside,
    /// Whether something keeps the clock right; none where nobody says.
    pub(super) is_synchronised: Option<bool>,
    pub(super) identity: Result<Identity, IdentityError>,
    /// Whether there is an operator's key.
    pub(super) operator: Result<bool, OperatorFileError>,
    pub(super) state: StateDirectory,
    /// The kernel beside the ledger; none where what it needs is missing already.
    pub(super) rules: Option<Result<Inspection, NodeError>>,
    /// What `status` says of configuration and ledger.
    pub(super) concerns: Vec<String>,
    pub(super) door: Door,
}

/// Interfaces that face the outside.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) names: Result<BTreeSet<String>, NodeError>,
    /// How strictly each is asked where a packet's source is: 0 not, 1 by the same interface, 2 by any.
    pub(super) rp_filter: BTreeMap<String, u8>,
}

/// Who this node is.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) validity: Validity,
    /// Of the trust document; 0 before there was any.
    pub(super) generation: u64,
}

/// Where the agent remembers.
#[derive(Debug)]
pub(super) struct StateDirectory {
    pub(super) path: PathBuf,
    pub(super) is_there: bool,
    /// It, or where it will be made.
    pub(super) is_writable: bool,
    /// Ports that the ledger holds closed.
    pub(super) closed: Result<usize, NodeError>,
}

/// Who reaches the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Nobody: it calls.
    None,
    /// So many networks.
    Networks(usize),
    Everybody,
}
