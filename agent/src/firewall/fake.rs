//! A firewall in memory, for faults that a real one does not show on demand.

use std::sync::{Arc, Mutex};

use deadlight_shared::Port;

use super::iptables::Save;
use super::{Change, Desired, DockerRules, Firewall, FirewallError, Inspection, Step};

/// Stands for a kernel with some tables, each of which holds one set of closed ports and is written whole.
/// Clones are the same kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
}

pub(crate) type Tables = [Vec<Port>; 3];

#[derive(Debug, Default)]
struct State {
    tables: Tables,
    writes: usize,
    lose: usize,
    refuse: usize,
    legacy: Option<[Save; 2]>,
    locked: bool,
    steps_left: Option<usize>,
}

impl Fake {
    /// Attempts to write, successful or not.
    pub(crate) fn writes(&self) -> usize {
        self.state.lock().unwrap().writes
    }

    /// The next writes succeed and leave nothing behind.
    pub(crate) fn lose_next_writes(&self, count: usize) {
        self.state.lock().unwrap().lose = count;
    }

    /// The next writes are refused, as where another program has changed what they rest on.
    pub(crate) fn refuse_next_writes(&self, count: usize) {
        self.state.lock().unwrap().refuse = count;
    }

    /// What iptables-legacy has, of IPv4.
    pub(crate) fn set_legacy(&self, rules: &str) {
        self.state.lock().unwrap().legacy = Some([Save::parse(rules).unwrap(), Save::default()]);
    }

    pub(crate) fn hold_lock(&self, held: bool) {
        self.state.lock().unwrap().locked = held;
    }

    /// After so many more tables the writer is dead: nothing it does reaches the kernel. `None` is a new one.
    pub(crate) fn die_after(&self, steps: Option<usize>) {
        self.state.lock().unwrap().steps_left = steps;
    }

    pub(crate) fn tables(&self) -> Tables {
        self.state.lock().unwrap().tables.clone()
    }

    /// What another program does to one table.
    pub(crate) fn clobber(&self, table: usize, ports: Vec<Port>) {
        self.state.lock().unwrap().tables[table] = ports;
    }
}

impl Firewall for Fake {
    fn inspect(&self, desired: &Desired) -> Result<Inspection, FirewallError> {
        let ports: Vec<Port> = desired.closed.iter().collect();
        let mut inspection = Inspection::default();
        let state = self.state.lock().unwrap();
        inspection.legacy.clone_from(&state.legacy);
        for (table, standing) in state.tables.iter().enumerate() {
            if ports != *standing {
                let program = vec!["fake".to_owned(), table.to_string()];
                let script = format!("close {}\n", desired.closed);
                inspection.change.steps.push(Step { program, script, ports: ports.clone() });
            }
        }
        Ok(inspection)
    }

    fn apply(&self, change: &Change) -> Result<(), FirewallError> {
        let mut state = self.state.lock().unwrap();
        state.writes += 1;
        if state.locked {
            return Err(FirewallError::Locked);
        }
        if let Some(left) = state.refuse.checked_sub(1) {
            state.refuse = left;
            return Err(FirewallError::Refused { program: "fake".to_owned(), message: "refused".to_owned() });
        }
        if let Some(left) = state.lose.checked_sub(1) {
            state.lose = left;
            return Ok(());
        }
        for step in &change.steps {
            if state.steps_left == Some(0) {
                return Err(FirewallError::Slow { program: "the dead".to_owned() });
            }
            state.steps_left = state.steps_left.map(|left| left - 1);
            let table: usize = step.program[1].parse().unwrap();
            state.tables[table].clone_from(&step.ports);
        }
        Ok(())
    }

    fn lines_for(&self, port: Port, _desired: &Desired, _docker: &DockerRules) -> Vec<String> {
        vec![format!("close {port}")]
    }
}
