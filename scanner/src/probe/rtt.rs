//! How long an answer takes: the estimator of TCP (RFC 6298) with limits of our own.

use std::time::Duration;

/// Waited for an answer where nothing is known, and at most: the pause after which a target
/// repeats its own SYN-ACK.
const LONGEST: Duration = Duration::from_secs(1);
/// Waited at least: a busy target on a near network is late by this much.
const SHORTEST: Duration = Duration::from_millis(150);

/// The smoothed round-trip time of one path and its variation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rtt(Option<(Duration, Duration)>);

impl Rtt {
    /// Takes one measurement.
    pub(super) fn sample(&mut self, measured: Duration) {
        self.0 = Some(match self.0 {
            None => (measured, measured / 2),
            Some((smooth, variation)) => ((smooth * 7 + measured) / 8, (variation * 3 + smooth.abs_diff(measured)) / 4),
        });
    }

    /// How long to wait before an attempt counts as silent.
    pub(super) fn timeout(self) -> Duration {
        self.0.map_or(LONGEST, |(smooth, variation)| (smooth + variation * 4).clamp(SHORTEST, LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_what_is_measured() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(), LONGEST);
        rtt.sample(Duration::from_millis(200));
        assert_eq!(rtt.timeout(), Duration::from_millis(600));
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(200));
        }
        assert!(rtt.timeout() < Duration::from_millis(210), "{:?}", rtt.timeout());
        for _ in 0..100 {
            rtt.sample(Duration::from_micros(50));
        }
        assert_eq!(rtt.timeout(), SHORTEST);
        rtt.sample(Duration::from_secs(30));
        assert_eq!(rtt.timeout(), LONGEST);
    }
}
