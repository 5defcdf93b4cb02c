//! Another program that changes the same tables at the same time, as dockerd does.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, anyhow};

use crate::{
    docker_rules::Backend,
    netns::{Netns, command_in},
    process::run,
    wait::wait_for,
};

/// Between two publications. A writer without any pause starves `iptables-nft-save`, which starts its dump anew
/// whenever the tables change under it.
const PAUSE: Duration = Duration::from_millis(20);

/// Publishes containers, one after the other: one rule in filter and one in nat for each.
#[derive(Debug)]
pub struct SecondWriter {
    written: Arc<AtomicU16>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl SecondWriter {
    /// Starts writing into the chain DOCKER of the node.
    pub fn start(node: &Netns, backend: Backend) -> Self {
        let (path, tool) = (node.path(), backend.tool("iptables", ""));
        Self::spawn(move |table, rule| {
            let mut command = command_in(&path, &tool);
            run(command.args(["--wait", "-t", table]).args(rule.split(' '))).map(drop)
        })
    }

    /// The same in iptables-legacy, with `lock` in place of the lock that everybody else takes. What the kernel
    /// refuses because the table has changed meanwhile is written again.
    pub fn start_unlocked(node: &Netns, lock: PathBuf) -> Self {
        let path = node.path();
        Self::spawn(move |table, rule| {
            wait_for(rule, Duration::from_secs(10), || {
                let mut command = command_in(&path, Backend::Legacy.tool("iptables", ""));
                command.env("XTABLES_LOCKFILE", &lock).args(["-t", table]).args(rule.split(' '));
                run(&mut command).map(drop).map_err(|error| error.to_string())
            })
        })
    }

    fn spawn(write: impl Fn(&str, &str) -> Result<()> + Send + 'static) -> Self {
        let (written, stop) = <(Arc<AtomicU16>, Arc<AtomicBool>)>::default();
        let thread = thread::spawn({
            let (written, stop) = (Arc::clone(&written), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    for (table, rule) in publication(written.load(Ordering::SeqCst)) {
                        write(table, &rule)?;
                    }
                    written.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(PAUSE);
                }
                Ok(())
            }
        });
        Self { written, stop, thread }
    }

    /// Publications so far.
    pub fn written(&self) -> u16 {
        self.written.load(Ordering::SeqCst)
    }

    /// Waits for `count` more of them.
    pub fn let_write(&self, count: u16) -> Result<()> {
        let goal = self.written() + count;
        wait_for("the second writer", Duration::from_secs(20), || {
            if self.written() >= goal { Ok(()) } else { Err(format!("{} of {goal}", self.written())) }
        })
    }

    /// Stops and returns how many publications it wrote; the caller finds out which survived with [`missing`].
    pub fn stop(self) -> Result<u16> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow!("the second writer panicked"))??;
        Ok(self.written.load(Ordering::SeqCst))
    }
}

/// Which of the rules for `written` publications are not in the tables.
pub fn missing(node: &Netns, backend: Backend, written: u16) -> Result<Vec<String>> {
    let saved = run(&mut node.command(backend.tool("iptables", "-save")))?;
    let present: BTreeSet<_> = saved.lines().collect();
    let rules = (0..written).flat_map(publication).map(|(_, rule)| rule);
    Ok(rules.filter(|rule| !present.contains(rule.as_str())).collect())
}

/// Table and rule, as iptables-save prints it, of `docker run -p PORT:80` for the container of that number; the
/// published port is one that no story uses.
fn publication(number: u16) -> [(&'static str, String); 2] {
    let [high, low] = number.to_be_bytes();
    let container = Ipv4Addr::new(172, 17, 100 + high, low);
    let port = 20_000 + number;
    [
        ("nat", format!("-A DOCKER ! -i docker0 -p tcp -m tcp --dport {port} -j DNAT --to-destination {container}:80")),
        ("filter", format!("-A DOCKER -d {container}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT")),
    ]
}
