//! The port of a node that must answer: what it was asked in a rescan, and what it answered.

use std::time::{Duration, Instant};

use deadlight_shared::Port;

use crate::probe::Loss;

/// How far from an attempt an answer of the control port still speaks for the way at that moment.
const NEAR: Duration = Duration::from_millis(300);

/// The probes to the control port, in the order in which they left.
#[derive(Debug, Clone)]
pub(super) struct Control {
    pub(super) port: Port,
    probes: Vec<Probe>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    sent: Instant,
    /// `None` while it is awaited.
    answered: Option<bool>,
}

impl Control {
    pub(super) fn new(port: Port) -> Self {
        Self { port, probes: Vec::new() }
    }

    pub(super) fn sent(&mut self, now: Instant) {
        self.probes.push(Probe { sent: now, answered: None });
    }

    /// Settles the probe that left at `sent`; `answered` is `None` when it never left.
    pub(super) fn record(&mut self, sent: Instant, answered: Option<bool>) {
        let Ok(index) = self.probes.binary_search_by_key(&sent, |probe| probe.sent) else { return };
        match answered {
            Some(_) => self.probes[index].answered = answered,
            None => drop(self.probes.remove(index)),
        }
    }

    /// What was lost of the probes that left between `first` and `last`, or just before.
    pub(super) fn loss(&self, first: Instant, last: Instant) -> Loss {
        self.around(first, last).filter_map(|probe| probe.answered).fold(Loss::default(), |loss, answered| Loss {
            asked: loss.asked + 1,
            lost: loss.lost + u32::from(!answered),
        })
    }

    /// Whether none of these is awaited any more. Losses are known later than answers: to count
    /// before would make the way look better than it is.
    pub(super) fn is_settled(&self, first: Instant, last: Instant) -> bool {
        self.around(first, last).all(|probe| probe.answered.is_some())
    }

    /// Whether the way was open right before and right after `sent`: an outage that swallowed the
    /// attempt of that moment would have swallowed these probes.
    pub(super) fn answered_around(&self, sent: Instant) -> bool {
        let middle = self.probes.partition_point(|probe| probe.sent <= sent);
        let (before, after) = self.probes.split_at(middle);
        let near = |probe: &&Probe| probe.sent + NEAR >= sent && probe.sent <= sent + NEAR;
        let answered = |probe: &Probe| probe.answered == Some(true);
        before.iter().rev().take_while(near).any(answered) && after.iter().take_while(near).any(answered)
    }

    fn around(&self, first: Instant, last: Instant) -> impl Iterator<Item = &Probe> {
        let start = self.probes.partition_point(|probe| probe.sent + NEAR < first);
        self.probes[start..].iter().take_while(move |probe| probe.sent <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control port asked every 100 ms from `start` on, with `answers` in this order.
    fn asked(start: Instant, answers: &[Option<bool>]) -> Control {
        let mut control = Control::new("7443/tcp".parse().unwrap());
        for (index, answer) in (0..).zip(answers) {
            let sent = start + Duration::from_millis(100) * index;
            control.sent(sent);
            if answer.is_some() {
                control.record(sent, *answer);
            }
        }
        control
    }

    #[test]
    fn counts_what_is_settled_within_the_time() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let control = asked(start, &[Some(false), Some(true), Some(true), Some(true), Some(false), Some(true), None]);
        assert_eq!(control.loss(at(350), at(500)), Loss { asked: 5, lost: 1 });
        assert!(control.is_settled(at(350), at(500)));
        assert_eq!(control.loss(at(0), at(900)), Loss { asked: 6, lost: 2 });
        assert_eq!(control.loss(at(0) + NEAR, at(500)), Loss { asked: 6, lost: 2 }, "near is near to the last moment");
        assert!(!control.is_settled(at(0), at(900)));
    }

    #[test]
    fn what_never_left_does_not_count() {
        let start = Instant::now();
        let mut control = asked(start, &[None, Some(true)]);
        control.record(start, None);
        assert_eq!(control.loss(start, start + NEAR), Loss { asked: 1, lost: 0 });
        assert!(control.is_settled(start, start + NEAR));
    }

    #[test]
    fn the_way_is_open_where_it_was_open_before_and_after() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let outage = [true, false, false, false, false, false, false, true, true].map(Some);
        let control = asked(start, &outage);
        for (millis, open) in [(50, false), (250, false), (350, false), (650, false), (750, true), (850, false)] {
            assert_eq!(control.answered_around(at(millis)), open, "{millis}");
        }
        assert!(asked(start, &[true, false, false, true].map(Some)).answered_around(at(150)));
    }
}
