//! How fast one node is asked: slower where loss rises with the rate, never above the limit.

use std::num::NonZeroU32;
use std::time::Instant;

use super::super::Loss;
use super::super::pacer::Pacer;

/// Probes to known ports in one window of judgement.
const WINDOW: u32 = 40;
/// Loss that is nobody's fault.
const TOLERATED: f64 = 0.05;
/// The rate never falls below this part of the limit.
const LEAST: f64 = 1.0 / 32.0;
/// Each window without trouble gives back this part of the limit.
const STEP: f64 = 1.0 / 16.0;

/// A token bucket whose rate follows the loss.
#[derive(Debug)]
pub(super) struct Pace {
    pacer: Pacer,
    limit: f64,
    rate: f64,
    tolerated: f64,
    window: Loss,
    trial: Option<Trial>,
}

/// The rate was halved to see whether that helps.
#[derive(Debug, Clone, Copy)]
struct Trial {
    rate: f64,
    loss: f64,
}

impl Pace {
    /// At most `limit` probes a second.
    pub(super) fn new(limit: NonZeroU32) -> Self {
        let rate = f64::from(limit.get());
        Self { pacer: Pacer::new(limit), limit: rate, rate, tolerated: TOLERATED, window: Loss::default(), trial: None }
    }

    /// Whether a probe may leave at `now`; otherwise when the next one may.
    pub(super) fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        self.pacer.ready(now)
    }

    /// Counts one probe.
    pub(super) fn spend(&mut self) {
        self.pacer.spend();
    }

    /// Takes the fate of probes to known ports.
    pub(super) fn learn(&mut self, fate: Loss) {
        self.window.asked += fate.asked;
        self.window.lost += fate.lost;
        if self.window.asked >= WINDOW {
            let Loss { asked, lost } = std::mem::take(&mut self.window);
            self.judge(f64::from(lost) / f64::from(asked));
        }
    }

    fn judge(&mut self, loss: f64) {
        match self.trial.take() {
            // Half the rate lost as much: the line loses whatever we do, and slowness would only cost time.
            Some(trial) if !helped(trial.loss, loss) => {
                self.rate = trial.rate;
                self.tolerated = self.tolerated.max(1.5 * loss.max(trial.loss));
            }
            _ if loss > self.tolerated => {
                self.trial = Some(Trial { rate: self.rate, loss });
                self.rate = (self.rate / 2.0).max(self.limit * LEAST);
            }
            _ => self.rate = (self.rate + self.limit * STEP).min(self.limit),
        }
        self.pacer.set_rate(self.rate.max(1.0));
    }
}

/// Whether half the rate was worth it: much less is lost, or much more of what is sent gets through.
fn helped(before: f64, after: f64) -> bool {
    after < before * 0.7 || 1.0 - after > 1.4 * (1.0 - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(NonZeroU32::new(3_200).unwrap())
    }

    /// Plays `windows` windows at a line that loses as `loss` says at a rate; the rates after each.
    fn play(pace: &mut Pace, windows: u32, loss: impl Fn(f64) -> f64) -> Vec<f64> {
        let window = |_| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 40")]
            let lost = (loss(pace.rate) * f64::from(WINDOW)).round() as u32;
            pace.learn(Loss { asked: WINDOW, lost });
            pace.rate
        };
        (0..windows).map(window).collect()
    }

    #[test]
    fn a_line_that_is_overrun_is_given_less() {
        // Whatever is above 1,000 a second is dropped.
        let bottleneck = |rate: f64| (1.0 - 1_000.0 / rate).max(0.0);
        let rates = play(&mut pace(), 40, bottleneck);
        let settled = &rates[10..];
        assert!(settled.iter().all(|rate| (400.0..=2_000.0).contains(rate)), "{settled:?}");
    }

    #[test]
    fn a_line_that_loses_anyway_is_not_slowed_down() {
        let mut pace = pace();
        let rates = play(&mut pace, 40, |_| 0.2);
        assert_eq!(rates.last(), Some(&3_200.0), "{rates:?}");
    }

    #[test]
    fn the_rate_keeps_its_bounds_and_recovers() {
        let mut pace = pace();
        let mut loss = 1.0;
        for _ in 0..20 {
            pace.judge(loss);
            loss *= 0.6;
        }
        assert!(pace.rate >= 100.0, "{}", pace.rate);
        play(&mut pace, 20, |_| 0.0);
        assert!((pace.rate - 3_200.0).abs() < 1.0, "{}", pace.rate);
        let (now, mut sent) = (Instant::now(), 0);
        while pace.ready(now).is_ok() {
            pace.spend();
            sent += 1;
        }
        assert_eq!(sent, 32, "10 ms worth");
    }
}
