//! How long to wait before the next call: a pure decision.

use std::time::Duration;

const STEP: Duration = Duration::from_millis(10);
/// Longest pause; a scanner waits a little longer for its nodes' first calls.
const CAP: Duration = Duration::from_secs(30);
/// A call that has lasted so long was a good one. A shorter one counts, or two nodes of one name, each of whose calls
/// ends the other's, would dial without pause.
pub(super) const GOOD: Duration = Duration::from_secs(30);

/// Calls that failed in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failed: u32,
}

impl Backoff {
    /// The pause after a call that ended by itself after `lasted`: n² × 10 ms, spread by half to either side; `chance`
    /// is a random number between 0 and 1.
    pub(super) fn pause(&mut self, lasted: Duration, chance: f64) -> Duration {
        self.failed = if lasted >= GOOD { 1 } else { self.failed.saturating_add(1) };
        let middle = STEP.saturating_mul(self.failed.saturating_pow(2)).min(CAP);
        middle.mul_f64(0.5 + chance.clamp(0.0, 1.0)).min(CAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    #[test]
    fn a_pause_grows_by_the_square_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..4).map(|_| backoff.pause(AT_ONCE, 0.5).as_millis()).collect();
        assert_eq!(pauses, [10, 40, 90, 160]);
        let long = (0..1_000_000).map(|_| backoff.pause(AT_ONCE, 1.0)).max();
        assert_eq!(long, Some(CAP));
        backoff.failed = u32::MAX;
        assert_eq!(backoff.pause(AT_ONCE, 0.0), CAP / 2, "a fleet does not call in step");
    }

    #[test]
    fn a_pause_is_spread_by_half() {
        for (chance, wanted) in [(0.0, 80), (1.0, 240)] {
            let mut backoff = Backoff { failed: 3 };
            assert_eq!(backoff.pause(AT_ONCE, chance).as_millis(), wanted);
        }
    }

    #[test]
    fn only_a_call_that_lasted_begins_anew() {
        let mut backoff = Backoff { failed: 3 };
        assert_eq!(backoff.pause(GOOD - Duration::from_millis(1), 0.5).as_millis(), 160);
        assert_eq!(backoff.pause(GOOD, 0.5).as_millis(), 10);
    }
}
