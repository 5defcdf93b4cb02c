//! The machines: `lab.sh` in a namespace and a directory that vanish with their owner.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    panic,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
};

use anyhow::{Context, Result, anyhow};
use deadlight_tests::{
    lab::Family,
    netns::Netns,
    process::run,
    programs::{Ended, finish},
    scratch,
};
use tempfile::TempDir;

/// One machine of the swarm.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: &'static str,
    /// Its version of Docker.
    pub(crate) engine: &'static str,
    number: u8,
    suite: &'static str,
    options: &'static [&'static str],
}

/// The first is the manager; the second forwarded before dockerd started, so its FORWARD policy is ACCEPT.
pub(crate) const NODES: [Node; 3] = [
    Node { name: "a", engine: "20.10", number: 11, suite: "bookworm", options: &[] },
    Node { name: "b", engine: "26.1", number: 12, suite: "trixie", options: &["forward=1"] },
    Node { name: "c", engine: "28.5", number: 13, suite: "forky", options: &[] },
];

impl Node {
    /// `port` on its outside interface.
    pub(crate) fn at(&self, family: Family, port: u16) -> SocketAddr {
        let address: IpAddr = match family {
            Family::V4 => Ipv4Addr::new(198, 51, 100, self.number).into(),
            // The digits of both addresses are the same.
            Family::V6 => {
                let digits = u16::from(self.number / 10 * 16 + self.number % 10);
                Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, digits).into()
            }
        };
        (address, port).into()
    }
}

/// The running machines and what is around them.
#[derive(Debug)]
pub(crate) struct Lab {
    /// Everything outside of the cluster.
    pub(crate) inet: Netns,
    directory: TempDir,
}

/// What [`take_down`] needs to know of the one lab of this process.
static PLACE: OnceLock<(String, PathBuf)> = OnceLock::new();

impl Lab {
    /// Boots every node.
    pub(crate) fn boot() -> Result<Self> {
        let lab = Self { inet: Netns::new("swarm")?, directory: scratch::directory()? };
        PLACE.set((lab.inet.name().to_owned(), lab.directory.path().to_owned())).ok();
        for node in &NODES {
            run(lab_sh()?.args(["up", node.name, &node.number.to_string(), node.suite]).args(node.options))?;
        }
        Ok(lab)
    }

    /// A directory that every node sees as `/lab`.
    pub(crate) fn shared(&self) -> PathBuf {
        self.directory.path().join("shared")
    }

    /// What a node runs at boot before it has an address, if it is there.
    pub(crate) fn before_network(&self, node: &Node) -> PathBuf {
        self.shared().join(format!("{}.before-network", node.name))
    }

    /// Runs a shell command on a node, which must succeed.
    pub(crate) fn on(&self, node: &Node, command: &str) -> Result<String> {
        let ended =
            self.ask(node, command)?.expect_code(0).with_context(|| format!("on node {}: {command}", node.name))?;
        Ok(ended.stdout)
    }

    /// Runs a shell command on a node to its end.
    pub(crate) fn ask(&self, node: &Node, command: &str) -> Result<Ended> {
        finish(lab_sh()?.args(["sh", node.name, command]))
    }

    /// Cuts the power and boots again, with the same disk.
    pub(crate) fn reboot(&self, node: &Node) -> Result<()> {
        run(lab_sh()?.args(["reboot", node.name])).map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        take_down();
    }
}

/// Ends the machines of this process; nothing to do where there are none.
pub(crate) fn take_down() {
    if PLACE.get().is_some()
        && let Err(error) = lab_sh().and_then(|mut command| run(command.arg("down")))
    {
        eprintln!("the lab is left behind: {error:#}");
    }
}

/// Does the same on every node at once.
pub(crate) fn on_each<T: Send>(work: impl Fn(&'static Node) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let working: Vec<_> = NODES.iter().map(|node| scope.spawn(move || work(node))).collect();
        working.into_iter().map(|work| work.join().unwrap_or_else(|panic| panic::resume_unwind(panic))).collect()
    })
}

fn lab_sh() -> Result<Command> {
    let (namespace, directory) = PLACE.get().ok_or_else(|| anyhow!("there is no lab"))?;
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("swarm/lab.sh"));
    command.env("SWARM_NETNS", namespace).env("SWARM_LAB", directory);
    Ok(command)
}
