//! What a driver tells while it is running, and at its end.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use deadlight_shared::{Port, PortSet, PortState};
use tokio::sync::mpsc::UnboundedSender;

use super::{Plan, Watch};
use crate::probe::{Engine, Lane, Probe};

/// A port whose state became known.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) node: usize,
    pub(super) address: IpAddr,
    pub(super) port: Port,
    pub(super) state: PortState,
    pub(super) attempts: u32,
    pub(super) by: By,
}

/// How it became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// A packet came in.
    Packet,
    /// The kernel said so about a socket.
    Socket,
    /// The same, but a socket of our own can have answered.
    SocketOfThisHost,
}

/// What a driver leaves behind.
#[derive(Debug)]
pub(super) struct Driven {
    pub(super) engine: Engine,
    pub(super) heard: BTreeSet<IpAddr>,
    /// Closed ports that were not told as events.
    pub(super) closed: u64,
    pub(super) sent: u64,
    pub(super) dropped: u64,
}

/// Where a driver tells what it finds. Closed ports are only counted, because there can be millions.
#[derive(Clone)]
pub(super) struct Notice {
    watched: Arc<[PortSet]>,
    events: UnboundedSender<Found>,
    watch: Watch,
    heard: BTreeSet<IpAddr>,
    last: Option<IpAddr>,
    closed: u64,
    pub(super) sent: u64,
    pub(super) dropped: u64,
}

impl Notice {
    pub(super) fn new(plan: &Plan, events: UnboundedSender<Found>, watch: Watch) -> Self {
        let watched = plan.nodes.iter().map(|node| node.watched.clone()).collect();
        Self { watched, events, watch, heard: BTreeSet::new(), last: None, closed: 0, sent: 0, dropped: 0 }
    }

    /// Counts one probe that left.
    pub(super) fn asked(&mut self, probe: Probe) {
        self.sent += 1;
        if !probe.is_control() && probe.attempt() == 1 {
            self.watch.asked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the state that `port` of `lane` turned out to have.
    pub(super) fn settled(&mut self, lane: &Lane, port: u16, state: PortState, attempts: u32, by: By) {
        if self.last != Some(lane.address) {
            self.heard.insert(lane.address);
            self.last = Some(lane.address);
        }
        let Some(port) = Port::new(lane.protocol, port) else { return };
        if state == PortState::Closed && !self.watched[lane.node].contains(port) {
            self.closed += 1;
            return;
        }
        let found = Found { node: lane.node, address: lane.address, port, state, attempts, by };
        // The other end lives as long as the sweep.
        let _told = self.events.send(found);
    }

    /// Whether the sweep is to end now.
    pub(super) fn is_stopped(&self) -> bool {
        *self.watch.stop.borrow()
    }

    /// Comes back when the sweep is to end.
    pub(super) async fn stopped(&mut self) {
        if self.watch.stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The end of the driver that used `engine`.
    pub(super) fn end(self, engine: Engine) -> Driven {
        let Self { heard, closed, sent, dropped, .. } = self;
        Driven { engine, heard, closed, sent, dropped }
    }
}
