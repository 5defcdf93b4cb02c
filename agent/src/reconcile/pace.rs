//! When to look at the kernel: after announced changes, by a timer, and never so often that looks cost much.

use std::time::{Duration, Instant};

/// How a look ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
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

/// When to look at the kernel next.
#[derive(Debug, PartialEq, Eq)]
pub struct Pace {
    /// When to look.
    pub due: Instant,
    /// When a look is due even where a glance shows nothing new.
    old: Instant,
    /// Before that, a change that is announced is not looked after.
    rests_until: Instant,
    /// Whether a change was announced since the last look.
    heard: bool,
    /// The last look after such a change, and how many there were without a [`QUIET`] between.
    changed: Instant,
    changes: u32,
}

impl Pace {
    /// The first look is due at once.
    pub fn new(now: Instant) -> Self {
        Self { due: now, old: now, rests_until: now, heard: false, changed: now, changes: 0 }
    }

    /// A change was announced: look at once, or as soon as the last look is paid for.
    pub fn hear(&mut self, now: Instant) {
        self.heard = true;
        self.due = self.due.min(now.max(self.rests_until));
    }

    /// Whether the last look is so old that a glance is not enough.
    pub fn is_old(&self, now: Instant) -> bool {
        now >= self.old
    }

    /// A glance at iptables-legacy has shown nothing new.
    pub fn glance(&mut self, now: Instant) {
        self.due = now + GLANCE_EVERY;
    }

    /// A look has ended. Looks take no more than one part in 200 of the time; a few changes are looked after at once,
    /// and where there is no end of them, looks take one part in 10. But drift is not left alone for
    /// longer than the limits say.
    pub fn look(&mut self, started: Instant, now: Instant, end: End) {
        let cost = now.duration_since(started);
        let rarely = (cost * 200).clamp(Duration::from_secs(30), Duration::from_secs(300));
        let pause = match end {
            End::Failed | End::Unsettled => Duration::from_secs(1),
            End::Silent => GLANCE_EVERY,
            End::Announced => rarely,
        };
        self.old = now + rarely;
        if std::mem::take(&mut self.heard) {
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
        // Of the firewall, of Docker, of the routes.
        for end in [End::Unsettled, End::Announced, End::Silent] {
            no_end_of_changes(end);
        }
    }

    fn no_end_of_changes(flood: End) {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.look(start, start + 50 * MS, End::Announced);
        assert_eq!(pace.due, start + 30_050 * MS);
        let mut now = start + 60 * MS;
        for _ in 0..AT_ONCE {
            pace.hear(now);
            assert_eq!(pace.due, now);
            now += 50 * MS;
            pace.look(now - 50 * MS, now, flood);
        }
        pace.hear(now);
        assert_eq!(pace.due, now, "so many are looked after at once");
        pace.look(now, now + 50 * MS, flood);
        pace.hear(now + 60 * MS);
        assert_eq!(pace.due, now + 550 * MS, "ten times the cost of the last look");
        now += 1_050 * MS + QUIET;
        pace.look(now - 50 * MS, now, End::Announced);
        pace.hear(now);
        assert_eq!(pace.due, now, "it was quiet for a while");
    }

    #[test]
    fn what_comes_before_quiet_is_over_belongs_to_a_flood() {
        for (after, is_flood) in [(QUIET, true), (QUIET + MS, false)] {
            let mut now = Instant::now();
            let mut pace = Pace::new(now);
            for _ in 0..AT_ONCE {
                pace.hear(now);
                pace.look(now, now, End::Announced);
            }
            now += after;
            pace.hear(now);
            pace.look(now - 50 * MS, now, End::Announced);
            pace.hear(now);
            assert_eq!(pace.due > now, is_flood, "{after:?}");
        }
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
        assert_eq!(after(60_000 * MS, End::Unsettled).as_secs(), 1);
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
