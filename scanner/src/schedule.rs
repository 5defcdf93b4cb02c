//! When the next round begins, and how much it looks at. Pure.

use std::time::{Duration, Instant};

use crate::round::Scope;

/// After the first round that left something to be proven; doubled each time.
const AGAIN: Duration = Duration::from_secs(5);
/// Part of the interval by which a full sweep may come early or late, so that scanners that were started together drift
/// apart.
const JITTER: f64 = 0.05;

/// Full sweeps from start to start, quick ones from end to start in between, and sooner where a proof is owed.
#[derive(Debug)]
pub struct Schedule {
    every: Duration,
    quick: Duration,
    full_at: Instant,
    quick_at: Instant,
    /// How long to wait after the next round that leaves something unproven.
    again: Duration,
}

impl Schedule {
    /// The first full sweep is due at once. Quick ones fall away where `quick` is not shorter than `every`.
    pub fn new(every: Duration, quick: Duration, now: Instant) -> Self {
        Self { every, quick, full_at: now, quick_at: now + quick, again: AGAIN }
    }

    /// When the next round begins, and what it looks at.
    pub fn next(&self) -> (Instant, Scope) {
        match self.quick_at < self.full_at {
            true => (self.quick_at, Scope::Quick),
            false => (self.full_at, Scope::Full),
        }
    }

    /// A round of `scope` has begun; `chance` is any number between 0 and 1.
    pub fn begun(&mut self, scope: Scope, now: Instant, chance: f64) {
        if scope == Scope::Full {
            self.full_at = now + self.every.mul_f64(1.0 + JITTER * (2.0 * chance - 1.0));
        }
    }

    /// A round is over; `is_settled` where nothing waits for its proof.
    pub fn ended(&mut self, now: Instant, is_settled: bool) {
        let pause = match is_settled {
            true => {
                self.again = AGAIN;
                self.quick
            }
            false => {
                let pause = self.again.min(self.quick);
                self.again = pause * 2;
                pause
            }
        };
        self.quick_at = now + pause;
    }

    /// A full sweep is wanted now.
    pub fn at_once(&mut self, now: Instant) {
        self.full_at = now;
        self.quick_at = self.quick_at.max(now);
    }

    /// Other intervals from now on. What is due by the old ones comes no later than by the new ones.
    pub fn change(&mut self, every: Duration, quick: Duration, now: Instant) {
        (self.every, self.quick, self.again) = (every, quick, AGAIN);
        self.full_at = self.full_at.min(now + every);
        self.quick_at = self.quick_at.min(now + quick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Scope::{Full, Quick};

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Rounds of 2 s each, the first `settled` of which leave nothing to be proven.
    fn rounds(schedule: &mut Schedule, start: Instant, settled: &[bool]) -> Vec<(u64, Scope)> {
        let round = |is_settled: &bool| {
            let (at, scope) = schedule.next();
            schedule.begun(scope, at, 0.5);
            schedule.ended(at + seconds(2), *is_settled);
            (at.duration_since(start).as_secs(), scope)
        };
        settled.iter().map(round).collect()
    }

    #[test]
    fn quick_sweeps_come_between_full_ones() {
        let start = Instant::now();
        let mut schedule = Schedule::new(seconds(150), seconds(60), start);
        let expected = [(0, Full), (62, Quick), (124, Quick), (150, Full), (212, Quick)];
        assert_eq!(rounds(&mut schedule, start, &[true; 5]), expected);
        let mut schedule = Schedule::new(seconds(60), seconds(60), start);
        assert_eq!(rounds(&mut schedule, start, &[true; 3]), [(0, Full), (60, Full), (120, Full)]);
    }

    #[test]
    fn what_is_unproven_is_looked_at_again_soon_and_then_less_often() {
        let start = Instant::now();
        let mut schedule = Schedule::new(seconds(900), seconds(60), start);
        let settled = [false, false, false, false, false, false, true, false, true];
        let at: Vec<u64> = rounds(&mut schedule, start, &settled).iter().map(|(at, _)| *at).collect();
        // 5, 10, 20, 40 and then as often as else, until it is proven.
        assert_eq!(at, [0, 7, 19, 41, 83, 145, 207, 269, 276]);
    }

    #[test]
    fn a_full_sweep_can_be_had_at_once_and_moves_the_next_one() {
        let start = Instant::now();
        let mut schedule = Schedule::new(seconds(900), seconds(60), start);
        rounds(&mut schedule, start, &[true]);
        schedule.at_once(start + seconds(10));
        assert_eq!(rounds(&mut schedule, start, &[true; 2]), [(10, Full), (72, Quick)]);
        assert_eq!(schedule.full_at, start + seconds(910));
    }

    #[test]
    fn jitter_stays_in_its_bounds() {
        let start = Instant::now();
        for (chance, expected) in [(0.0, 95), (0.5, 100), (1.0, 105)] {
            let mut schedule = Schedule::new(seconds(100), seconds(200), start);
            schedule.begun(Full, start, chance);
            assert_eq!(schedule.full_at.duration_since(start).as_secs_f64().round(), f64::from(expected));
        }
    }

    #[test]
    fn shorter_intervals_hold_at_once() {
        let start = Instant::now();
        let mut schedule = Schedule::new(seconds(900), seconds(600), start);
        rounds(&mut schedule, start, &[true]);
        schedule.change(seconds(100), seconds(30), start + seconds(10));
        assert_eq!(rounds(&mut schedule, start, &[true; 3]), [(40, Quick), (72, Quick), (104, Quick)]);
        schedule.change(seconds(9_000), seconds(6_000), start + seconds(105));
        assert_eq!(rounds(&mut schedule, start, &[true])[0], (110, Full), "longer ones after what was due");
    }
}
