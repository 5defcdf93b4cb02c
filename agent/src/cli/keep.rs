//! Keeps in the kernel what shall stand there: looks when a change is announced, and by a timer besides.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadlight_shared::hint;
use tokio::task::block_in_place;
use tokio::time::sleep_until;

use crate::firewall::{is_own_program, legacy_in_use, legacy_tables};
use crate::inventory::{changes, events};
use crate::node::Node;

/// Looks for ever. What was lost is put back and remembered with its likely author.
pub(super) async fn keep(node: Arc<Node>, docker_socket: PathBuf) {
    let unheard = |error: &std::io::Error| tracing::warn!(%error, "changes are not announced; a timer looks for them");
    let mut firewall = changes::of_firewall().inspect_err(unheard).ok();
    let mut routes = changes::of_routes().inspect_err(unheard).ok();
    let mut docker = events::watch(docker_socket);
    let mut pace = Pace::new(Instant::now());
    let mut authors = BTreeSet::new();
    let mut facts_changed = false;
    let mut legacy = None;
    loop {
        tokio::select! {
            // Who wrote is heard before what was written is looked at.
            biased;
            Some(author) = async { firewall.as_mut()?.recv().await } => {
                if !author.pid.is_some_and(is_own_program) {
                    authors.insert(author.to_string());
                    pace.hear(Instant::now());
                }
                continue;
            }
            Some(()) = async { routes.as_mut()?.recv().await } => {
                facts_changed = true;
                pace.hear(Instant::now());
                continue;
            }
            Some(()) = docker.recv() => {
                facts_changed = true;
                pace.hear(Instant::now());
                continue;
            }
            () = sleep_until(pace.due.into()) => {}
        }
        let started = Instant::now();
        // Read before the look, so that what changes meanwhile is seen at the next turn.
        let standing = block_in_place(legacy_tables);
        if authors.is_empty() && !facts_changed && standing.is_some() && standing == legacy && !pace.is_old(started) {
            pace.glance(Instant::now());
            continue;
        }
        // Right after a change Docker may be busy with it, and the rules need none of its words.
        let asks_docker = facts_changed || authors.is_empty();
        let looked = if asks_docker { node.reconcile().await } else { node.restore().await };
        match &looked {
            Ok(written) => node.remember_drift(written, &likely(&authors, facts_changed)).await,
            Err(error) => tracing::error!("{}", hint::render(error)),
        }
        let end = match looked {
            Err(_) => End::Failed,
            Ok(_) if !asks_docker => End::Unsettled,
            Ok(_) if firewall.as_ref().is_some_and(|firewall| !firewall.is_closed()) && !legacy_in_use() => {
                End::Announced
            }
            Ok(_) => End::Silent,
        };
        pace.look(started, Instant::now(), end);
        legacy = standing.filter(|_| end == End::Silent);
        if end != End::Failed {
            authors.clear();
            facts_changed = false;
        }
    }
}

fn likely(authors: &BTreeSet<String>, facts_changed: bool) -> String {
    match authors.iter().map(String::as_str).collect::<Vec<_>>().join(", ") {
        names if !names.is_empty() => names,
        _ if facts_changed => "unknown; Docker or the routes changed just before".to_owned(),
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
    /// Well, but changes are not announced, because iptables-legacy has tables.
    Silent,
}

/// Where nobody announces changes.
const GLANCE_EVERY: Duration = Duration::from_secs(3);

/// So many changes in a row are looked after at once.
const AT_ONCE: u32 = 5;
const QUIET: Duration = Duration::from_secs(10);

/// When to look next.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    due: Instant,
    /// When a look is due even where a glance shows nothing new.
    old: Instant,
    /// Before that, a change that is announced is not looked after.
    rests_until: Instant,
    /// The last look after a change, and how many there were without a [`QUIET`] between.
    changed: Instant,
    changes: u32,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { due: now, old: now, rests_until: now, changed: now, changes: 0 }
    }

    /// A change was announced: look at once, or as soon as the last look is paid for.
    fn hear(&mut self, now: Instant) {
        self.due = self.due.min(now.max(self.rests_until));
    }

    /// Whether the last look is so old that a glance is not enough.
    fn is_old(&self, now: Instant) -> bool {
        now >= self.old
    }

    /// A glance at iptables-legacy has shown nothing new.
    fn glance(&mut self, now: Instant) {
        self.due = now + GLANCE_EVERY;
    }

    /// A look has ended. Looks take no more than one part in 200 of the time; a few changes are looked after at once,
    /// and where others write the firewall all the time, looks take one part in 10. But drift is not left alone for
    /// longer than the limits say.
    fn look(&mut self, started: Instant, now: Instant, end: End) {
        let cost = now.duration_since(started);
        let rarely = (cost * 200).clamp(Duration::from_secs(30), Duration::from_secs(300));
        let pause = match end {
            End::Failed | End::Unsettled => Duration::from_secs(1),
            End::Silent => GLANCE_EVERY,
            End::Announced => rarely,
        };
        self.old = now + rarely;
        if end == End::Unsettled {
            self.changes = if now.duration_since(self.changed) > QUIET { 1 } else { self.changes + 1 };
            self.changed = now;
        }
        let is_flood = self.changes > AT_ONCE && now.duration_since(self.changed) <= QUIET;
        self.rests_until = if is_flood { now + (cost * 10).min(Duration::from_secs(1)) } else { now };
        self.due = now + pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn changes_are_looked_after_at_once_unless_there_is_no_end_of_them() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.look(start, start + 50 * MS, End::Announced);
        assert_eq!(pace.due, start + 30_050 * MS);
        let mut now = start + 60 * MS;
        for _ in 0..AT_ONCE {
            pace.hear(now);
            assert_eq!(pace.due, now);
            now += 50 * MS;
            pace.look(now - 50 * MS, now, End::Unsettled);
            assert_eq!(pace.due, now + 1_000 * MS);
        }
        pace.hear(now);
        pace.look(now, now + 50 * MS, End::Unsettled);
        pace.hear(now + 60 * MS);
        assert_eq!(pace.due, now + 550 * MS, "ten times the cost of the last look");
        now += 1_050 * MS + QUIET;
        pace.look(now - 50 * MS, now, End::Announced);
        pace.hear(now);
        assert_eq!(pace.due, now, "it was quiet for a while");
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
        assert_eq!(after(60_000 * MS, End::Silent), GLANCE_EVERY);
        assert_eq!(after(60_000 * MS, End::Failed).as_secs(), 1);
    }

    #[test]
    fn a_glance_is_enough_between_two_looks() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(pace.is_old(start), "nothing was looked at yet");
        pace.look(start, start + 50 * MS, End::Silent);
        assert!(!pace.is_old(start + 30_000 * MS) && pace.is_old(start + 30_050 * MS));
        pace.glance(start + 4_000 * MS);
        assert_eq!(pace.due, start + 7_000 * MS);
    }
}
