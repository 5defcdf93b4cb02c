//! Keeps in the kernel what shall stand there: looks when a change is announced, and by a timer besides.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadlight_shared::hint;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::firewall::legacy_in_use;
use crate::inventory::{changes, events};
use crate::node::Node;

/// Looks for ever. What was lost is put back and remembered with its likely author.
pub(super) async fn keep(node: Arc<Node>, docker_socket: PathBuf) {
    let mut firewall = changes::watch()
        .inspect_err(
            |error| tracing::warn!(%error, "changes of the firewall are not announced; a timer looks for them"),
        )
        .ok();
    let mut docker = events::watch(docker_socket);
    let mut pace = Pace::new(Instant::now());
    let mut authors = BTreeSet::new();
    let mut docker_told = false;
    loop {
        tokio::select! {
            // Who wrote is heard before what was written is looked at.
            biased;
            author = announced(&mut firewall) => {
                match author {
                    Some(author) => _ = authors.insert(author),
                    None => firewall = None,
                }
                pace.hear(Instant::now());
                continue;
            }
            Some(()) = docker.recv() => {
                docker_told = true;
                pace.hear(Instant::now());
                continue;
            }
            () = sleep_until(pace.due.into()) => {}
        }
        let started = Instant::now();
        // Right after a change Docker may be busy with it, and the rules need none of its words.
        let asks_docker = docker_told || authors.is_empty();
        let looked = if asks_docker { node.reconcile().await } else { node.restore().await };
        match &looked {
            Ok(written) => node.remember_drift(written, &likely(&authors, docker_told)).await,
            Err(error) => tracing::error!("{}", hint::render(error)),
        }
        let end = match looked {
            Err(_) => End::Failed,
            Ok(_) if !asks_docker => End::Unsettled,
            Ok(_) if firewall.is_some() && !legacy_in_use() => End::Announced,
            Ok(_) => End::Silent,
        };
        pace.look(started, Instant::now(), end);
        if end != End::Failed {
            authors.clear();
            docker_told = false;
        }
    }
}

async fn announced(firewall: &mut Option<mpsc::UnboundedReceiver<changes::Author>>) -> Option<changes::Author> {
    match firewall {
        Some(firewall) => firewall.recv().await,
        None => std::future::pending().await,
    }
}

fn likely(authors: &BTreeSet<changes::Author>, docker_told: bool) -> String {
    match authors.iter().map(String::as_str).collect::<Vec<_>>().join(", ") {
        names if !names.is_empty() => names,
        _ if docker_told => "unknown; Docker told of a change just before".to_owned(),
        _ => "unknown; nothing announced a change, as where iptables-legacy is written".to_owned(),
    }
}

/// How a look ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The firewall could not be read or written.
    Failed,
    /// Well, after a change; Docker was not asked yet.
    Unsettled,
    /// Well, and every change is announced.
    Announced,
    /// Well, but where iptables-legacy has tables their changes are not announced.
    Silent,
}

/// When to look next.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    due: Instant,
    /// Before that, a change that is announced is not looked after.
    rests_until: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { due: now, rests_until: now }
    }

    /// A change was announced: look at once, or as soon as the last look is paid for.
    fn hear(&mut self, now: Instant) {
        self.due = self.due.min(now.max(self.rests_until));
    }

    /// A look has ended. Looks take no more than one part in 200 of the time, and one in 10 while others write
    /// the firewall all the time; but drift is not left alone for longer than the limits say.
    fn look(&mut self, started: Instant, now: Instant, end: End) {
        let cost = now.duration_since(started);
        let pause = match end {
            End::Failed | End::Unsettled => Duration::from_secs(1),
            End::Silent => (cost * 200).clamp(Duration::from_secs(3), Duration::from_secs(4)),
            End::Announced => (cost * 200).clamp(Duration::from_secs(30), Duration::from_secs(300)),
        };
        self.rests_until = now + (cost * 10).min(Duration::from_secs(1));
        self.due = now + pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_change_is_looked_after_at_once_unless_the_firewall_is_written_all_the_time() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.due, start);
        pace.look(start, start + 50 * MS, End::Announced);
        assert_eq!(pace.due, start + 30_050 * MS);
        pace.hear(start + 100 * MS);
        assert_eq!(pace.due, start + 550 * MS, "ten times the cost of the last look");
        pace.look(start + 550 * MS, start + 600 * MS, End::Unsettled);
        assert_eq!(pace.due, start + 1_600 * MS);
        pace.hear(start + 9_000 * MS);
        assert_eq!(pace.due, start + 1_600 * MS, "the look that is due comes first");
    }

    #[test]
    fn a_costly_look_is_rarer_but_never_too_rare() {
        let start = Instant::now();
        let after = |cost: Duration, end| {
            let mut pace = Pace::new(start);
            pace.look(start, start + cost, end);
            pace.due - (start + cost)
        };
        assert_eq!(after(MS, End::Announced).as_secs(), 30);
        assert_eq!(after(400 * MS, End::Announced).as_secs(), 80);
        assert_eq!(after(60_000 * MS, End::Announced).as_secs(), 300);
        assert_eq!(after(MS, End::Silent).as_secs(), 3);
        assert_eq!(after(60_000 * MS, End::Silent).as_secs(), 4);
        assert_eq!(after(60_000 * MS, End::Failed).as_secs(), 1);
    }
}
