//! What goes wrong, and how it ends.

use super::agents::now_or_never;
use super::*;

impl World {
    pub(super) fn begins(&mut self, index: usize) {
        let Fault { until, what, .. } = self.course.faults[index];
        self.tell(|| format!("{what:?} until {:.1}", until.as_secs_f64()));
        let now = self.now;
        let machine = |node: usize| self.machines[node].lock();
        match what {
            Trouble::AgentDies(node, calls) => machine(node).fuel = Some(calls),
            Trouble::Reboot(node, in_1970) => self.reboot(node, in_1970),
            Trouble::Flush(node, table) => {
                machine(node).tables[table].clear();
                self.announce(node);
            }
            Trouble::LoseWrites(node, writes) => machine(node).lost_writes = writes,
            Trouble::Lock(node) => machine(node).locked = true,
            Trouble::DiskFull(node) => machine(node).disk_full = true,
            Trouble::DockerHangs(node) => machine(node).docker_hung = true,
            Trouble::NodeClock(node, hours) => machine(node).clock_off = SignedDuration::from_hours(hours),
            Trouble::Lies(node) => self.agents[node].lies = true,
            Trouble::Bypass(node) => machine(node).bypassed = true,
            Trouble::Clone(node) => self.clone_node(node, until),
            Trouble::Partition { scanner, node, there, back } => {
                self.links.entry((scanner, node)).and_modify(|link| (link.there, link.back) = (!there, !back));
            }
            Trouble::Rough { scanner, node, loss } => {
                self.links.entry((scanner, node)).and_modify(|link| link.loss = loss);
            }
            Trouble::Flaps { scanner, node } => {
                self.links.entry((scanner, node)).and_modify(|link| link.flaps = true);
            }
            Trouble::ScannerDies(scanner, writes) => match writes {
                0 => self.scanner_dies(scanner, MINUTE),
                _ => self.scanners[scanner].disk.0.lock().unwrap().fuel = Some(writes),
            },
            Trouble::ScannerDiskFull(scanner) => self.scanners[scanner].disk.0.lock().unwrap().full = true,
            Trouble::ScannerClock(scanner, hours) => {
                self.scanners[scanner].clock_off = SignedDuration::from_hours(hours);
            }
            Trouble::ScannerRestored(scanner) => {
                let hour_ago = now.saturating_sub(60 * MINUTE);
                let backup = self.scanners[scanner].backups.iter().rfind(|(at, ..)| *at <= hour_ago);
                if let Some((_, state, proven)) = backup.cloned() {
                    self.scanner_dies(scanner, MINUTE);
                    self.scanners[scanner].disk.0.lock().unwrap().state = state;
                    self.oracle.restored(scanner, proven);
                }
            }
            Trouble::Replay(node) => {
                let mut orders: Vec<_> = self.captured.iter().filter(|(to, _)| *to == node).cloned().collect();
                self.rng.shuffle(&mut orders);
                for (node, order) in orders.into_iter().take(12) {
                    let order = Box::new(order);
                    let pause = MINUTE.mul_f64(self.rng.f64());
                    self.after(pause, Event::OrderArrives { scanner: usize::MAX, life: 0, node, order });
                }
            }
        }
    }

    pub(super) fn ends(&mut self, index: usize) {
        let what = self.course.faults[index].what;
        let machine = |node: usize| self.machines[node].lock();
        match what {
            Trouble::Lock(node) => machine(node).locked = false,
            Trouble::LoseWrites(node, _) => machine(node).lost_writes = 0,
            Trouble::DiskFull(node) => machine(node).disk_full = false,
            Trouble::DockerHangs(node) => machine(node).docker_hung = false,
            Trouble::NodeClock(node, _) | Trouble::Reboot(node, true) => machine(node).clock_off = SignedDuration::ZERO,
            Trouble::Lies(node) => self.agents[node].lies = false,
            Trouble::Bypass(node) => machine(node).bypassed = false,
            Trouble::Clone(node) => self.front[node] = node,
            Trouble::Partition { scanner, node, .. } => {
                self.links.entry((scanner, node)).and_modify(|link| (link.there, link.back) = (true, true));
            }
            Trouble::Rough { scanner, node, .. } => {
                self.links.entry((scanner, node)).and_modify(|link| link.loss = 0.0);
            }
            Trouble::Flaps { scanner, node } => {
                self.links.entry((scanner, node)).and_modify(|link| link.flaps = false);
            }
            Trouble::ScannerDiskFull(scanner) => self.scanners[scanner].disk.0.lock().unwrap().full = false,
            Trouble::ScannerClock(scanner, _) => self.scanners[scanner].clock_off = SignedDuration::ZERO,
            Trouble::AgentDies(..)
            | Trouble::Reboot(..)
            | Trouble::Flush(..)
            | Trouble::ScannerDies(..)
            | Trouble::ScannerRestored(_)
            | Trouble::Replay(_) => {}
        }
    }

    /// The storm is over: whatever would still kill somebody does not any more.
    pub(super) fn calm(&mut self) {
        for machine in &self.machines {
            machine.lock().fuel = None;
        }
        for scanner in &self.scanners {
            scanner.disk.0.lock().unwrap().fuel = None;
        }
    }

    pub(super) fn reboot(&mut self, machine: usize, in_1970: bool) {
        self.agent_dies(machine);
        let mut rig = self.machines[machine].lock();
        rig.up = false;
        rig.boot += 1;
        rig.tables = Default::default();
        if in_1970 {
            rig.clock_off = Timestamp::UNIX_EPOCH.duration_since(*self.clock.lock().unwrap());
        }
        drop(rig);
        // The unit that restores the rules goes before the network and before Docker.
        let restored = now_or_never(self.node(machine).restore());
        if restored.is_ok() && self.course.nodes[self.agents[machine].of].enforces {
            self.oracle.well(machine, self.agents[machine].of, &self.machines[machine].lock());
        }
        let pause = MINUTE.mul_f64(self.rng.f64());
        self.after(pause, Event::NodeIsUp(machine));
        let pause = pause + MINUTE.mul_f64(self.rng.f64());
        self.after(pause, Event::AgentStarts(machine));
    }

    pub(super) fn clone_node(&mut self, node: usize, until: Duration) {
        let copy = {
            let original = self.machines[node].lock();
            let mut copy =
                Machine::new(original.addresses.clone(), original.listening.clone(), Arc::clone(&self.clock));
            copy.disk.clone_from(&original.disk);
            copy.boot = 1_000 + self.machines.len() as u64;
            copy
        };
        let machine = self.machines.len();
        self.oracle.cloned(node);
        if self.machines[node].lock().unsaved {
            self.oracle.forgot(machine);
        }
        self.machines.push(Rig::new(copy));
        self.agents.push(Agent::new(node, self.base));
        self.agent_starts(machine);
        let mut at = self.now;
        while at < until {
            self.at(at, Event::Turns(node));
            at += (15 * MINUTE).mul_f64(0.1 + self.rng.f64());
        }
        self.at(until, Event::Turns(node));
    }

    /// Another of the machines with one name answers.
    pub(super) fn turns(&mut self, node: usize) {
        let alike: Vec<usize> = (0..self.machines.len()).filter(|machine| self.agents[*machine].of == node).collect();
        self.front[node] = alike[self.rng.usize(..alike.len())];
        if self.now >= STORM {
            self.front[node] = node;
        }
    }
}
