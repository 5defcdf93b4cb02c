//! A token bucket.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Longest pause after which the full rate is caught up at once.
const BURST: Duration = Duration::from_millis(10);

/// Allows a number of probes a second, in bursts of at most 10 ms worth.
#[derive(Debug, Clone)]
pub struct Pacer {
    rate: f64,
    burst: f64,
    tokens: f64,
    refilled: Option<Instant>,
}

impl Pacer {
    /// A pacer of `rate` probes a second that starts with a full bucket.
    pub fn new(rate: NonZeroU32) -> Self {
        let mut pacer = Self { rate: 0.0, burst: 0.0, tokens: 0.0, refilled: None };
        pacer.set_rate(f64::from(rate.get()));
        pacer.tokens = pacer.burst;
        pacer
    }

    /// From now on `rate` probes a second, which is above 0.
    pub fn set_rate(&mut self, rate: f64) {
        self.rate = rate;
        self.burst = (rate * BURST.as_secs_f64()).max(1.0);
    }

    /// Whether a probe may leave at `now`; otherwise when the next one may.
    pub fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        let passed = self.refilled.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.tokens = self.burst.min(self.tokens + passed.as_secs_f64() * self.rate);
        self.refilled = self.refilled.max(Some(now));
        match self.tokens >= 1.0 {
            true => Ok(()),
            false => Err(now + Duration::from_secs_f64((1.0 - self.tokens) / self.rate)),
        }
    }

    /// Counts one probe.
    pub fn spend(&mut self) {
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of probes that leave within `span` when the pacer is asked as often as it wishes.
    fn sent_within(rate: u32, span: Duration) -> u32 {
        let mut pacer = Pacer::new(NonZeroU32::new(rate).unwrap());
        let start = Instant::now();
        let (mut now, mut sent) = (start, 0);
        while now < start + span {
            match pacer.ready(now) {
                Ok(()) => {
                    pacer.spend();
                    sent += 1;
                }
                Err(next) => now = next.max(now + Duration::from_nanos(1)),
            }
        }
        sent
    }

    #[test]
    fn keeps_the_rate() {
        for (rate, low, high) in [(1, 10, 11), (100, 999, 1_001), (20_000, 199_990, 200_201)] {
            let sent = sent_within(rate, Duration::from_secs(10));
            assert!((low..=high).contains(&sent), "{rate}/s sent {sent} in 10 s");
        }
    }

    #[test]
    fn a_long_pause_is_not_caught_up() {
        let mut pacer = Pacer::new(NonZeroU32::new(1_000).unwrap());
        let now = Instant::now() + Duration::from_secs(3_600);
        let burst = std::iter::from_fn(|| pacer.ready(now).ok().map(|()| pacer.spend())).count();
        assert_eq!(burst, 10);
    }
}
