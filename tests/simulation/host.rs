//! A machine under an agent: its disk, kernel, Docker and clock. The agent's process may die at any call.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deadlight_agent::firewall::{Change, Desired, DockerRules, Firewall, FirewallError, Inspection, Step};
use deadlight_agent::inventory::docker::DockerError;
use deadlight_agent::inventory::{DockerFacts, Facts, Listener, NetlinkError, Networks, Process};
use deadlight_agent::ledger::{Ledger, LedgerError};
use deadlight_agent::node::{Docker, Host};
use deadlight_shared::{Port, PortSet};
use jiff::{SignedDuration, Timestamp};

/// The true time, which a machine's own clock may differ from.
pub(crate) type Clock = Arc<Mutex<Timestamp>>;

/// The guard shuts a port; the other two stand for Docker's narrowed rules of both families.
pub(crate) const GUARD: usize = 0;

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) disk: Option<Ledger>,
    pub(crate) disk_full: bool,
    /// Whether the agent knows more than the disk.
    pub(crate) unsaved: bool,
    pub(crate) tables: [BTreeSet<Port>; 3],
    /// So many of the next writes leave nothing behind.
    pub(crate) lost_writes: u32,
    pub(crate) locked: bool,
    pub(crate) docker_hung: bool,
    /// Ports on which something other than a container listens.
    pub(crate) listening: BTreeMap<Port, &'static str>,
    pub(crate) clock: Clock,
    pub(crate) clock_off: SignedDuration,
    pub(crate) boot: u64,
    pub(crate) up: bool,
    /// Rules that stand and do not hold: traffic takes another way.
    pub(crate) bypassed: bool,
    /// Calls that the agent's process has left to live.
    pub(crate) fuel: Option<u32>,
    pub(crate) dead: bool,
    pub(crate) calls: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Rig(Arc<Mutex<Machine>>);

impl Machine {
    pub(crate) fn new(addresses: Vec<IpAddr>, listening: BTreeMap<Port, &'static str>, clock: Clock) -> Self {
        Self {
            addresses,
            disk: None,
            disk_full: false,
            unsaved: false,
            tables: Default::default(),
            lost_writes: 0,
            locked: false,
            docker_hung: false,
            listening,
            clock,
            clock_off: SignedDuration::ZERO,
            boot: 1,
            up: true,
            bypassed: false,
            fuel: None,
            dead: false,
            calls: 0,
        }
    }

    pub(crate) fn wall(&self) -> Timestamp {
        *self.clock.lock().unwrap() + self.clock_off
    }

    /// What a new process finds on the disk is what was written there as text.
    pub(crate) fn reread(&mut self) {
        let text = self.disk.as_ref().map(|ledger| serde_json::to_vec(ledger).unwrap());
        self.disk = text.map(|text| serde_json::from_slice(&text).unwrap());
    }

    /// Whether the kernel lets nobody to `port`.
    pub(crate) fn shuts(&self, port: Port) -> bool {
        self.tables[GUARD].contains(&port) && !self.bypassed
    }

    /// One call of the agent's; false when it did not live to make it.
    fn live(&mut self) -> bool {
        self.calls += 1;
        match self.fuel {
            Some(0) => self.dead = true,
            Some(left) => self.fuel = Some(left - 1),
            None => {}
        }
        !self.dead
    }
}

impl Rig {
    pub(crate) fn new(machine: Machine) -> Self {
        Self(Arc::new(Mutex::new(machine)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Machine> {
        // After a failed check it is still counted.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listening(machine: &Machine) -> Vec<Listener> {
        let listener = |(port, program): (&Port, &&str)| Listener {
            port: *port,
            address: [0; 4].into(),
            process: Some(Process { pid: 700, program: (*program).to_owned(), ..Process::default() }),
            is_hidden: false,
        };
        machine.listening.iter().map(listener).collect()
    }
}

fn path() -> PathBuf {
    PathBuf::from("/simulated")
}

impl Host for Rig {
    fn now(&self) -> Timestamp {
        self.lock().wall()
    }

    fn lock(&self) -> Result<Option<File>, LedgerError> {
        match Self::lock(self).live() {
            true => Ok(None),
            false => Err(LedgerError::Busy { path: path() }),
        }
    }

    fn load(&self) -> Result<Ledger, LedgerError> {
        let mut machine = Self::lock(self);
        if !machine.live() {
            return Err(LedgerError::Busy { path: path() });
        }
        Ok(machine.disk.clone().unwrap_or_default())
    }

    fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let mut machine = Self::lock(self);
        let source = match (machine.live(), machine.disk_full) {
            (true, false) => {
                machine.disk = Some(ledger.clone());
                machine.unsaved = false;
                return Ok(());
            }
            (true, true) => {
                machine.unsaved = true;
                io::ErrorKind::StorageFull.into()
            }
            (false, _) => io::ErrorKind::Other.into(),
        };
        Err(LedgerError::Write { path: path(), source })
    }

    fn listeners(&self) -> io::Result<Vec<Listener>> {
        let mut machine = Self::lock(self);
        match machine.live() {
            true => Ok(Self::listening(&machine)),
            false => Err(io::ErrorKind::Other.into()),
        }
    }

    fn outside(&self) -> Result<BTreeSet<String>, NetlinkError> {
        Ok(["eth0".to_owned()].into())
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        Self::lock(self).addresses.iter().map(|address| ("eth0".to_owned(), *address)).collect()
    }

    fn forget_reversed(&self, _listeners: &[Listener], _closed: &PortSet) {
        Self::lock(self).live();
    }

    fn networks(&self) -> Docker<'_, Result<Networks, DockerError>> {
        let hung = Self::lock(self).docker_hung;
        Box::pin(std::future::ready(match hung {
            true => Err(DockerError::Hung { socket: path() }),
            false => Ok(Networks::default()),
        }))
    }

    fn facts(&self, _ports: PortSet) -> Docker<'_, Facts> {
        let machine = Self::lock(self);
        let docker = match machine.docker_hung {
            true => Err("docker hangs".to_owned()),
            false => Ok(DockerFacts::default()),
        };
        let listeners = Ok(Self::listening(&machine));
        let addresses = machine.addresses.clone();
        Box::pin(std::future::ready(Facts { flows: Ok(Vec::new()), listeners, docker, addresses }))
    }
}

impl Firewall for Rig {
    fn inspect(&self, desired: &Desired) -> Result<Inspection, FirewallError> {
        let mut machine = Self::lock(self);
        if !machine.live() {
            return Err(FirewallError::Slow { program: "the dead".to_owned() });
        }
        let closed: BTreeSet<Port> = desired.closed.iter().collect();
        let mut inspection = Inspection::default();
        for (table, standing) in machine.tables.iter().enumerate().filter(|(_, standing)| **standing != closed) {
            let ports = closed.iter().copied().collect();
            let script = format!("{standing:?} becomes {closed:?}\n");
            inspection.change.steps.push(Step { program: vec!["write".to_owned(), table.to_string()], script, ports });
        }
        Ok(inspection)
    }

    fn apply(&self, change: &Change) -> Result<(), FirewallError> {
        let mut machine = Self::lock(self);
        if machine.locked {
            return Err(FirewallError::Locked);
        }
        for step in &change.steps {
            if !machine.live() {
                return Err(FirewallError::Slow { program: "the dead".to_owned() });
            }
            if machine.lost_writes > 0 {
                machine.lost_writes -= 1;
                continue;
            }
            let table: usize = step.program[1].parse().unwrap();
            machine.tables[table] = step.ports.iter().copied().collect();
        }
        Ok(())
    }

    fn lines_for(&self, port: Port, _desired: &Desired, _docker: &DockerRules) -> Vec<String> {
        vec![format!("drop {port}")]
    }
}
