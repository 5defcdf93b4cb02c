//! How much is lost on the way, and what silence is worth then.

/// Chance of missing an open port that is accepted.
pub const MISS: f64 = 1e-6;

/// How often probes to ports that are known to answer stayed unanswered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Probes whose answer arrived or is overdue.
    pub asked: u32,
    /// Those that were not answered.
    pub lost: u32,
}

impl Loss {
    /// An upper bound of the chance that an open port keeps silent `silent` times while the known
    /// ports do as well as they did, or better.
    ///
    /// The true loss q is not known, and no assumption about it is made: for every q the chance is
    /// P(at most `lost` of `asked` are lost | q) · q^`silent`, and this is the largest of them, with
    /// Chernoff's bound exp(-n KL(k/n ‖ q)) for the first factor. It is reached at
    /// q = (`lost` + `silent`) / (`asked` + `silent`). A loss so high that silence is likely makes it
    /// unlikely that the known ports answered, and the other way round; the worst q balances both.
    ///
    /// Losses are taken as independent. They are not within one outage: spread attempts in time, and
    /// the probes to known ports among them.
    pub fn miss_chance(self, silent: u32) -> f64 {
        let (asked, lost, silent) = (f64::from(self.asked), f64::from(self.lost.min(self.asked)), f64::from(silent));
        if self.asked == 0 {
            return 1.0;
        }
        let (seen, worst) = (lost / asked, (lost + silent) / (asked + silent));
        let exponent = times_ln(lost, worst / seen)
            + times_ln(asked - lost, (1.0 - worst) / (1.0 - seen))
            + times_ln(silent, worst);
        exponent.exp().min(1.0)
    }

    /// Silent attempts after which [`Self::miss_chance`] is below [`MISS`]: at least 2, and `None`
    /// where not even `most` are enough.
    pub fn attempts_needed(self, most: u32) -> Option<u32> {
        (2..=most).find(|&silent| self.miss_chance(silent) < MISS)
    }
}

/// `factor` · ln(`ratio`), where 0 · ln(anything) is 0.
fn times_ln(factor: f64, ratio: f64) -> f64 {
    match factor > 0.0 {
        true => factor * ratio.ln(),
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loss(lost: u32, asked: u32) -> Loss {
        Loss { asked, lost }
    }

    #[test]
    fn the_less_is_known_and_the_more_is_lost_the_more_attempts_are_needed() {
        for (lost, asked, needed) in [
            (0, 10_000, 2),
            (0, 740, 2),
            (0, 734, 3),
            (0, 110, 3),
            (0, 108, 4),
            (52, 2_600, 4),
            (0, 25, 6),
            (0, 10, 10),
            (300, 1_000, 12),
        ] {
            assert_eq!(loss(lost, asked).attempts_needed(30), Some(needed), "{lost} of {asked}");
        }
        assert_eq!(loss(0, 25).attempts_needed(5), None);
    }

    #[test]
    fn nothing_follows_where_nothing_was_asked_or_answered() {
        for nothing in [loss(0, 0), loss(1, 1), loss(1_000, 1_000), loss(u32::MAX, u32::MAX)] {
            assert!((nothing.miss_chance(30) - 1.0).abs() < f64::EPSILON, "{nothing:?}");
            assert_eq!(nothing.attempts_needed(1_000), None, "{nothing:?}");
        }
        assert!((loss(0, 9).miss_chance(0) - 1.0).abs() < f64::EPSILON, "an attempt that was not made shows nothing");
        assert!(loss(0, u32::MAX).miss_chance(1) < MISS);
    }

    /// The chance that `lost` of `asked` are lost at the loss `q`.
    fn binomial(lost: u32, asked: u32, q: f64) -> f64 {
        let choose = (1..=lost).map(|i| (f64::from(asked - lost + i) / f64::from(i)).ln()).sum::<f64>();
        (choose + f64::from(lost) * q.ln() + f64::from(asked - lost) * (1.0 - q).ln()).exp()
    }

    #[test]
    fn whatever_the_loss_an_open_port_is_missed_once_in_a_million() {
        for asked in [5, 10, 25, 110, 300] {
            let needed: Vec<_> = (0..=asked).map(|lost| loss(lost, asked).attempts_needed(30)).collect();
            for q in (1..100).map(|percent| f64::from(percent) / 100.0) {
                let missed = |(lost, needed): (u32, &Option<u32>)| {
                    needed.map_or(0.0, |needed| binomial(lost, asked, q) * q.powf(needed.into()))
                };
                let chance: f64 = (0..).zip(&needed).map(missed).sum();
                // Chernoff bounds one count at a time; `needed` differs from count to count.
                assert!(chance < 1.1 * MISS, "{asked} asked, loss {q}: {chance:e}");
            }
        }
    }

    #[test]
    fn drawn_at_random_the_bound_holds_as_well() {
        const ROUNDS: u32 = 200_000;
        let mut random = fastrand::Rng::with_seed(20_260_731);
        for silent in 2..=6 {
            let mut missed = std::collections::BTreeMap::<u32, u32>::new();
            let (asked, q) = (random.u32(5..40), 0.6 * random.f64());
            for _ in 0..ROUNDS {
                let mut losses = |times: u32| (0..times).filter(|_| random.f64() < q).count();
                let (lost, all_silent) = (losses(asked), losses(silent) == silent as usize);
                *missed.entry(u32::try_from(lost).unwrap()).or_default() += u32::from(all_silent);
            }
            let mut at_most = 0;
            for (lost, count) in missed {
                at_most += count;
                let frequency = f64::from(at_most) / f64::from(ROUNDS);
                let bound =
                    if f64::from(lost) / f64::from(asked) < q { loss(lost, asked).miss_chance(silent) } else { 1.0 };
                let deviation = (bound / f64::from(ROUNDS)).sqrt();
                assert!(
                    frequency <= bound + 5.0 * deviation,
                    "{lost} of {asked}, {silent} silent: {frequency} > {bound}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn more_silence_more_answers_and_fewer_losses_make_a_miss_less_likely(
            (asked, lost) in (1_u32..5_000).prop_flat_map(|asked| (Just(asked), 0..=asked)),
            silent in 0_u32..50,
        ) {
            let chance = loss(lost, asked).miss_chance(silent);
            prop_assert!((0.0..=1.0).contains(&chance));
            let not_above = |other: f64| chance <= other * (1.0 + 1e-9);
            prop_assert!(loss(lost, asked).miss_chance(silent + 1) <= chance * (1.0 + 1e-9));
            prop_assert!(loss(lost, asked + 1).miss_chance(silent) <= chance * (1.0 + 1e-9));
            prop_assert!(lost == asked || not_above(loss(lost + 1, asked).miss_chance(silent)));
        }
    }
}
