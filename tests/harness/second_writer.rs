//! Another program that changes the same tables at the same time, as dockerd does.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, anyhow};

use crate::{docker_rules::Backend, netns::Netns, process::run, wait::wait_for};

/// Publishes containers as fast as iptables lets it: one rule in filter and one in nat for each.
#[derive(Debug)]
pub struct SecondWriter {
    written: Arc<AtomicU16>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl SecondWriter {
    /// Starts writing into the chain DOCKER of the node.
    pub fn start(node: &Netns, backend: Backend) -> Self {
        let (written, stop) = <(Arc<AtomicU16>, Arc<AtomicBool>)>::default();
        let iptables = {
            let (path, tool) = (node.path(), backend.tool("iptables", ""));
            move |rule: &[String]| run(crate::netns::command_in(&path, &tool).arg("--wait").args(rule))
        };
        let thread = thread::spawn({
            let (written, stop) = (Arc::clone(&written), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    for rule in publication("-A", written.load(Ordering::SeqCst)) {
                        iptables(&rule)?;
                    }
                    written.fetch_add(1, Ordering::SeqCst);
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
pub fn missing(node: &Netns, backend: Backend, written: u16) -> Vec<String> {
    (0..written)
        .flat_map(|number| publication("-C", number))
        .filter(|rule| run(node.command(backend.tool("iptables", "")).arg("--wait").args(rule)).is_err())
        .map(|rule| rule.join(" "))
        .collect()
}

/// `docker run -p PORT:80` for the container of that number, with a published port that no story uses.
fn publication(verb: &str, number: u16) -> [Vec<String>; 2] {
    let [high, low] = number.to_be_bytes();
    let container = Ipv4Addr::new(172, 17, 100 + high, low);
    let port = 20_000 + number;
    let words = |text: String| text.split(' ').map(str::to_owned).collect();
    [
        words(format!(
            "-t nat {verb} DOCKER -p tcp -d 0/0 --dport {port} -j DNAT --to-destination {container}:80 ! -i docker0"
        )),
        words(format!("-t filter {verb} DOCKER ! -i docker0 -o docker0 -p tcp -d {container} --dport 80 -j ACCEPT")),
    ]
}
