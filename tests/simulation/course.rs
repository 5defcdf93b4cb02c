//! What happens under a seed: the deployment, what Docker publishes, and what goes wrong when.

use std::time::Duration;

use deadlight_shared::{Port, PortSet};
use fastrand::Rng;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
/// From the start of one round to the start of the next.
pub(crate) const EVERY: Duration = Duration::from_secs(600);
/// After this nothing goes wrong any more.
pub(crate) const STORM: Duration = Duration::from_secs(9_000);

/// Ports that come and go.
const CHANGING: [&str; 6] = ["8080/tcp", "8081/tcp", "9000/tcp", "9100/tcp", "5353/udp", "5514/udp"];
/// Ports that everybody knows about.
const SWEPT: &str = "22,80,8080-8081,9000,9100/tcp,5353,5514/udp";

#[derive(Debug, Clone)]
pub(crate) struct Course {
    pub(crate) nodes: Vec<NodeSetup>,
    pub(crate) scanners: Vec<ScannerSetup>,
    /// In order of time.
    pub(crate) events: Vec<(Duration, Happening)>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) swept: PortSet,
}

#[derive(Debug, Clone)]
pub(crate) struct NodeSetup {
    pub(crate) enforces: bool,
    pub(crate) protected: PortSet,
    pub(crate) max_new_per_hour: usize,
    pub(crate) controlled_by_ssh: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct ScannerSetup {
    pub(crate) name: &'static str,
    pub(crate) allow: PortSet,
}

/// What the world does without meaning harm.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    /// A service on every node, through the mesh.
    Mesh(Port, bool),
    /// A program or container of one node.
    Local(usize, Port, bool),
    /// The operator allows a port at one scanner, which is started anew for it.
    Allow(usize, Port),
}

#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) until: Duration,
    pub(crate) what: Trouble,
}

/// What goes wrong; with an end where it lasts. Nodes and scanners by number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Trouble {
    /// The agent dies after so many calls.
    AgentDies(usize, u32),
    /// The node starts anew; whether its clock then shows 1970.
    Reboot(usize, bool),
    /// Another program empties a table.
    Flush(usize, usize),
    /// Another program undoes what is written next.
    LoseWrites(usize, u32),
    Lock(usize),
    DiskFull(usize),
    DockerHangs(usize),
    NodeClock(usize, i64),
    /// The agent is somebody else's: it says that all is closed, and closes nothing.
    Lies(usize),
    /// Rules stand and do not hold.
    Bypass(usize),
    /// A copy of the node runs, and takes turns at its address.
    Clone(usize),
    /// Nothing passes, this way, that way or both.
    Partition {
        scanner: usize,
        node: usize,
        there: bool,
        back: bool,
    },
    Rough {
        scanner: usize,
        node: usize,
        loss: f64,
    },
    /// Many short outages.
    Flaps {
        scanner: usize,
        node: usize,
    },
    /// The scanner dies when it has written so many times.
    ScannerDies(usize, u32),
    ScannerDiskFull(usize),
    ScannerClock(usize, i64),
    /// The scanner's state is put back to what it was an hour ago.
    ScannerRestored(usize),
    /// Orders that were captured arrive again, in any order.
    Replay(usize),
}

impl Trouble {
    /// The kind, for counting.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::AgentDies(..) => "agent dies",
            Self::Reboot(_, false) => "reboot",
            Self::Reboot(_, true) => "reboot in 1970",
            Self::Flush(..) => "flush",
            Self::LoseWrites(..) => "lost writes",
            Self::Lock(_) => "lock held",
            Self::DiskFull(_) => "disk full",
            Self::DockerHangs(_) => "docker hangs",
            Self::NodeClock(..) => "node's clock",
            Self::Lies(_) => "lying agent",
            Self::Bypass(_) => "rules bypassed",
            Self::Clone(_) => "cloned node",
            Self::Partition { there: true, back: true, .. } => "partition",
            Self::Partition { .. } => "one-way partition",
            Self::Rough { .. } => "loss",
            Self::Flaps { .. } => "short outages",
            Self::ScannerDies(..) => "scanner dies",
            Self::ScannerDiskFull(_) => "scanner's disk full",
            Self::ScannerClock(..) => "scanner's clock",
            Self::ScannerRestored(_) => "scanner restored",
            Self::Replay(_) => "replay",
        }
    }

    fn draw(rng: &mut Rng, nodes: usize, scanners: usize) -> Self {
        let (node, scanner) = (rng.usize(..nodes), rng.usize(..scanners));
        let hours = rng.i64(1..=24) * if rng.bool() { 1 } else { -1 };
        match rng.u8(..24) {
            0 | 1 => Self::AgentDies(node, rng.u32(..25)),
            2 => Self::Reboot(node, rng.bool()),
            3 => Self::Flush(node, rng.usize(..3)),
            4 => Self::LoseWrites(node, rng.u32(1..12)),
            5 => Self::Lock(node),
            6 => Self::DiskFull(node),
            7 => Self::DockerHangs(node),
            8 => Self::NodeClock(node, hours),
            9 => Self::Lies(node),
            10 => Self::Bypass(node),
            11 => Self::Clone(node),
            12 | 13 => Self::Partition { scanner, node, there: true, back: true },
            14 => Self::Partition { scanner, node, there: true, back: false },
            15 => Self::Partition { scanner, node, there: false, back: true },
            16 => Self::Rough { scanner, node, loss: 0.25 * rng.f64() },
            17 => Self::ScannerDies(scanner, rng.u32(..8)),
            18 => Self::ScannerDiskFull(scanner),
            19 => Self::ScannerClock(scanner, hours),
            20 => Self::ScannerRestored(scanner),
            21 => Self::Replay(node),
            _ => Self::Flaps { scanner, node },
        }
    }
}

impl Course {
    /// The course of `seed`.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let changing = CHANGING.map(|port| port.parse::<Port>().unwrap());
        let nodes = (0..rng.usize(1..=3)).map(|_| NodeSetup {
            enforces: rng.u8(..6) > 0,
            protected: if rng.bool() { "9100/tcp".parse().unwrap() } else { PortSet::default() },
            max_new_per_hour: rng.usize(3..=20),
            controlled_by_ssh: rng.bool(),
        });
        let nodes: Vec<NodeSetup> = nodes.collect();
        let names = ["office-a", "office-b"];
        let scanners = (0..rng.usize(1..=2)).map(|index| {
            let mut allow: PortSet = "80/tcp".parse().unwrap();
            if rng.u8(..3) == 0 {
                allow.insert(changing[rng.usize(..changing.len())]);
            }
            ScannerSetup { name: names[index], allow }
        });
        let scanners: Vec<ScannerSetup> = scanners.collect();
        let within_storm = |rng: &mut Rng| STORM.mul_f64(rng.f64());
        let happening = |rng: &mut Rng| {
            let port = changing[rng.usize(..changing.len())];
            match rng.u8(..10) {
                0..5 => Happening::Mesh(port, rng.u8(..3) > 0),
                5..9 => Happening::Local(rng.usize(..nodes.len()), port, rng.u8(..3) > 0),
                _ => Happening::Allow(rng.usize(..scanners.len()), port),
            }
        };
        let mut events: Vec<_> = (0..rng.usize(3..14)).map(|_| (within_storm(&mut rng), happening(&mut rng))).collect();
        events.push((Duration::ZERO, Happening::Mesh("80/tcp".parse().unwrap(), true)));
        events.sort_by_key(|(at, _)| *at);
        let fault = |rng: &mut Rng| {
            let at = within_storm(rng);
            let until = (at + (60 * MINUTE).mul_f64(rng.f64())).min(STORM);
            Fault { at, until, what: Trouble::draw(rng, nodes.len(), scanners.len()) }
        };
        let faults = (0..rng.usize(2..25)).map(|_| fault(&mut rng)).collect();
        Self { events, faults, swept: SWEPT.parse().unwrap(), nodes, scanners }
    }

    /// The same without anything going wrong.
    pub(crate) fn undisturbed(&self) -> Self {
        Self { faults: Vec::new(), ..self.clone() }
    }
}
