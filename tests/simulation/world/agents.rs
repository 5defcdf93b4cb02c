//! The agents: they start, look, answer and die.

use super::*;

impl World {
    pub(super) fn agent_config(&self, node: usize) -> Config {
        let setup = &self.course.nodes[node];
        Config {
            mode: if setup.enforces { Mode::Enforce } else { Mode::Observe },
            protected: vec![setup.protected.clone()],
            max_new_per_hour: setup.max_new_per_hour,
            ..Config::default()
        }
    }

    pub(super) fn node(&self, machine: usize) -> Node {
        let (of, rig) = (self.agents[machine].of, &self.machines[machine]);
        let name = self.names[of].clone();
        Node::on(Box::new(rig.clone()), name, self.agent_config(of), Box::new(rig.clone()))
    }

    pub(super) fn agent_starts(&mut self, machine: usize) {
        if !self.machines[machine].lock().up || self.agents[machine].process.is_some() {
            return;
        }
        self.machines[machine].lock().reread();
        let process = self.node(machine);
        let agent = &mut self.agents[machine];
        agent.life += 1;
        agent.pace = Pace::new(self.base + self.now);
        agent.process = Some(process);
        self.agent_looks(machine, true);
    }

    /// One look at the kernel, as `cli/keep.rs` has it.
    pub(super) fn agent_looks(&mut self, machine: usize, arms: bool) {
        let agent = &mut self.agents[machine];
        let Some(process) = &agent.process else { return };
        if !agent.lies {
            if self.planted == Some(Planted::Overzealous) {
                self.machines[machine].lock().tables.iter_mut().for_each(|table| table.extend([self.ssh]));
                return;
            }
            let looked = match arms {
                true => now_or_never(process.arm()),
                false => now_or_never(process.reconcile()),
            };
            if self.machines[machine].lock().dead {
                return self.agent_dies(machine);
            }
            if looked.is_ok() && self.course.nodes[agent.of].enforces {
                self.oracle.well(machine, agent.of, &self.machines[machine].lock());
            }
            let end = if looked.is_ok() { End::Announced } else { End::Failed };
            let now = self.base + self.now;
            agent.pace.look(now.checked_sub(LOOK).unwrap_or(now), now, end);
        } else {
            agent.pace.glance(self.base + self.now);
        }
        self.schedule_look(machine);
    }

    pub(super) fn schedule_look(&mut self, machine: usize) {
        let agent = &mut self.agents[machine];
        // An earlier date of the same life comes to nothing.
        agent.life += 1;
        let (due, life) = (agent.pace.due - self.base, agent.life);
        self.at(due, Event::AgentLooks(machine, life));
    }

    /// The kernel tells the agent that somebody else has written.
    pub(super) fn announce(&mut self, machine: usize) {
        self.agents[machine].pace.hear(self.base + self.now);
        self.schedule_look(machine);
    }

    pub(super) fn agent_dies(&mut self, machine: usize) {
        self.tell(|| format!("agent {machine} is dead"));
        let agent = &mut self.agents[machine];
        agent.process = None;
        agent.life += 1;
        let mut rig = self.machines[machine].lock();
        (rig.dead, rig.fuel) = (false, None);
        if std::mem::take(&mut rig.unsaved) {
            self.oracle.forgot(machine);
        }
        drop(rig);
        let pause = (5 * MINUTE).mul_f64(self.rng.f64());
        self.after(pause, Event::AgentStarts(machine));
    }

    /// An order sets out to `node`; copies of it may come later, and more than once.
    pub(crate) fn send(&mut self, scanner: usize, node: usize, order: Order) {
        self.captured.push((node, order.clone()));
        let link = self.links[&(scanner, node)];
        let life = self.scanners[scanner].life;
        let copies = 1 + usize::from(self.now < STORM && self.rng.u8(..8) == 0);
        for _ in 0..copies {
            let pause = self.delay();
            if link.there && !link.is_out(self.now) && self.rng.f64() >= link.loss {
                let order = Box::new(order.clone());
                self.after(pause, Event::OrderArrives { scanner, life, node, order });
            }
        }
    }

    pub(super) fn delay(&mut self) -> Duration {
        let slow = self.now < STORM && !self.course.faults.is_empty() && self.rng.u8(..10) == 0;
        let most = if slow { 90_000 } else { 200 };
        Duration::from_millis(self.rng.u64(1..most))
    }

    pub(super) fn order_arrives(&mut self, scanner: usize, life: u64, node: usize, order: &Order) {
        let machine = self.front[node];
        let (agent, rig) = (&self.agents[machine], &self.machines[machine]);
        let Some(process) = agent.process.as_ref().filter(|_| rig.lock().up) else { return };
        if agent.lies {
            return self.answer(scanner, life, node, order, Ok(lie(order)));
        }
        let now = rig.lock().wall();
        if let Err(refusal) = plan::admit(order, &order.scanner, &self.names[node], now) {
            return self.answer(scanner, life, node, order, Err(conflict(&refusal)));
        }
        let is_old = self.oracle.is_old(machine, order);
        let before = {
            let rig = rig.lock();
            is_old.then(|| (rig.tables.clone(), rig.disk.clone()))
        };
        if !is_old {
            self.oracle.ordered(machine, order);
        }
        let address = ["203.0.113.1", "203.0.113.2"][scanner.min(1)].parse().unwrap();
        let forgotten = is_old && self.planted == Some(Planted::Forgetful);
        let epoch = if forgotten { order.epoch + 1_000_000_000 } else { order.epoch };
        let answered = now_or_never(process.answer(&Order { epoch, ..order.clone() }, address));
        if let Some(before) = before {
            let rig = self.machines[machine].lock();
            assert!(before == (rig.tables.clone(), rig.disk.clone()), "an old order changed {}", self.names[node]);
        }
        if self.machines[machine].lock().dead {
            return self.agent_dies(machine);
        }
        if let (Ok(report), false) = (&answered, is_old) {
            self.oracle.answered(machine, order, report);
        }
        self.answer(scanner, life, node, order, answered.map_err(|error| conflict(&error)));
    }

    pub(super) fn answer(
        &mut self,
        scanner: usize,
        life: u64,
        node: usize,
        order: &Order,
        answer: Result<Report, DeliverError>,
    ) {
        let Some(link) = self.links.get(&(scanner, node)).copied() else { return };
        let mark = OrderMark { epoch: order.epoch, sequence: order.sequence };
        let pause = self.delay();
        if link.back && !link.is_out(self.now) && self.rng.f64() >= link.loss {
            let answer = Box::new(answer);
            self.after(pause, Event::AnswerArrives { scanner, life, order: mark, node, answer });
        }
    }
}

impl Agent {
    pub(super) fn new(of: usize, base: Instant) -> Self {
        Self { of, process: None, life: 0, pace: Pace::new(base), lies: false }
    }
}

/// What the agent says of an order that does not fit its time.
fn conflict(error: &dyn std::error::Error) -> DeliverError {
    DeliverError::Said { status: StatusCode::CONFLICT, detail: error.to_string() }
}

/// The report of somebody who closes nothing and says that all is closed.
fn lie(order: &Order) -> Report {
    let outcome = |finding: &deadlight_shared::wire::ReportedFinding| Outcome {
        finding: finding.id.clone(),
        protocol: finding.protocol,
        port: finding.port,
        status: OutcomeStatus::Enforced,
        reason: "closed and read back".to_owned(),
        cause: Cause::new(CauseKind::Unknown),
        rules: Vec::new(),
        dropped: 0,
    };
    Report {
        schema: Report::SCHEMA.to_owned(),
        node: order.node.clone(),
        mode: Mode::Enforce,
        order: OrderMark { epoch: order.epoch, sequence: order.sequence },
        outcomes: order.findings.iter().map(outcome).collect(),
        warnings: Vec::new(),
    }
}

/// Nothing in a simulated machine is waited for.
pub(super) fn now_or_never<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits for something outside of the simulation"),
    }
}
