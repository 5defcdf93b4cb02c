//! The door, shared by all connections.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deadlight_shared::Identity;
use deadlight_shared::wire::Callers;
use ipnet::IpNet;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::oneshot;

use super::door::{Door, Ticket};

/// Nothing is ever sent: the connection has to go when the sender is dropped.
type Held = oneshot::Sender<Infallible>;

/// As many as help.
const DESCRIPTORS: usize = 16_384;

/// All slots.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Mutex<Door<Held>>>);

impl Slots {
    /// Empty ones. `scanners` are the networks that scanners call from. Strangers may hold three quarters of the
    /// descriptors: who has to go keeps his until his task has heard of it.
    pub fn new(scanners: Vec<IpNet>) -> Self {
        Self::of(scanners, descriptors() / 4 * 3)
    }

    /// The same with so many for `strangers`.
    pub(super) fn of(scanners: Vec<IpNet>, strangers: usize) -> Self {
        Self(Arc::new(Mutex::new(Door::new(scanners, strangers))))
    }

    /// A slot for a connection from `address`.
    pub(super) fn enter(&self, address: IpAddr) -> (Slot, Eviction) {
        let (held, evicted) = oneshot::channel();
        let ticket = self.door().enter(address, held);
        (Slot { ticket, slots: self.clone() }, Eviction(evicted))
    }

    /// Who came so far.
    pub fn callers(&self) -> Callers {
        self.door().callers()
    }

    /// A handler has panicked.
    pub(super) fn panicked(&self) {
        self.door().panicked();
    }

    fn door(&self) -> MutexGuard<'_, Door<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the door for as long as this lives.
#[derive(Debug)]
pub(super) struct Slot {
    ticket: Ticket,
    slots: Slots,
}

impl Slot {
    /// Moves to the slots of `identity`; false when the connection had to go before.
    pub(super) fn prove(&self, identity: &Identity) -> bool {
        self.slots.door().prove(self.ticket, identity.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.door().leave(self.ticket);
    }
}

/// Comes when the connection has to go.
#[derive(Debug)]
pub(super) struct Eviction(oneshot::Receiver<Infallible>);

impl Eviction {
    /// Runs `work` to its end, or until the connection has to go.
    pub(super) async fn or(self, work: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            _ = self.0 => {}
            () = work => {}
        }
    }
}

/// How many descriptors this process may have, after its soft limit was raised as far as it helps.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let number = |limit: Option<u64>| limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let (current, most) = (number(limit.current), number(limit.maximum).min(DESCRIPTORS));
    if current >= most {
        return current.min(DESCRIPTORS);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most as u64), maximum: limit.maximum }) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(%error, "the limit of open descriptors stays low, and so does the number of slots");
            current
        }
    }
}
