//! A firewall in memory, for faults that a real one does not show on demand.

use std::sync::Mutex;

use deadlight_shared::Port;

use super::{Change, Desired, DockerRules, Firewall, FirewallError, Inspection, Step};

/// Stands for a kernel that holds one set of closed ports.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: Vec<Port>,
    writes: usize,
    lose: usize,
    locked: bool,
}

impl Fake {
    pub(crate) fn writes(&self) -> usize {
        self.state.lock().unwrap().writes
    }

    /// The next writes succeed and leave nothing behind.
    pub(crate) fn lose_next_writes(&self, count: usize) {
        self.state.lock().unwrap().lose = count;
    }

    pub(crate) fn hold_lock(&self, held: bool) {
        self.state.lock().unwrap().locked = held;
    }
}

impl Firewall for Fake {
    fn inspect(&self, desired: &Desired) -> Result<Inspection, FirewallError> {
        let ports: Vec<Port> = desired.closed.iter().collect();
        let mut inspection = Inspection::default();
        if ports != self.state.lock().unwrap().closed {
            let script = format!("close {}\n", desired.closed);
            inspection.change.steps.push(Step { program: vec!["fake".to_owned()], script, ports });
        }
        Ok(inspection)
    }

    fn apply(&self, change: &Change) -> Result<(), FirewallError> {
        let mut state = self.state.lock().unwrap();
        if state.locked {
            return Err(FirewallError::Locked);
        }
        state.writes += 1;
        match state.lose.checked_sub(1) {
            Some(left) => state.lose = left,
            None => state.closed = change.steps[0].ports.clone(),
        }
        Ok(())
    }

    fn lines_for(&self, port: Port, _desired: &Desired, _docker: &DockerRules) -> Vec<String> {
        vec![format!("close {port}")]
    }
}
