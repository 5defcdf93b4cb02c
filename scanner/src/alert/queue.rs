//! What one sink has still to be told, and when. Pure: `now` and chance come in.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use super::{Alert, Kind};

/// A sink that fails is asked again after this, then twice as long, and so on.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(1);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// After a message that took no more, the next one waits no longer than this: nothing is won by waiting.
const AFTER_A_FULL_ONE: SignedDuration = SignedDuration::from_secs(1);
/// The longest that a sink may ask us to wait.
const LONGEST_RETRY_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The sink has it.
    Accepted,
    /// Perhaps later; not before this pause, where the sink names one.
    Later(Option<SignedDuration>),
    /// The sink never takes this one.
    Refused,
}

/// The alerts for one sink, in order. None leaves before the sink has accepted or refused it.
#[derive(Debug)]
pub struct Queue {
    waiting: VecDeque<Alert>,
    /// The sink rests until then.
    rests_until: Option<Timestamp>,
    failures: u32,
    /// After a message the next one waits so long, with everything that came meanwhile.
    between: SignedDuration,
    /// The most alerts that one message takes.
    most: usize,
    /// So many alerts are in a message of which it is not known whether it has arrived: it comes again as it was.
    undecided: usize,
    /// No more than this go into one message: the sink has refused more.
    limit: usize,
}

impl Queue {
    /// What was left over from before, for a sink that has `between` its messages of at most `most` alerts. The latest
    /// message, up to the alert of number `offered`, may have arrived: what is left of it comes again by itself, with
    /// nothing that came later.
    pub fn new(left: Vec<Alert>, offered: u64, between: SignedDuration, most: usize) -> Self {
        let undecided = left.iter().take_while(|alert| alert.number <= offered).count();
        Self { waiting: left.into(), rests_until: None, failures: 0, between, most, undecided, limit: most }
    }

    /// More to tell.
    pub fn push(&mut self, alerts: impl IntoIterator<Item = Alert>) {
        self.waiting.extend(alerts);
    }

    /// When the next message is due; `None` while there is none.
    pub fn due(&self, now: Timestamp) -> Option<Timestamp> {
        let is_urgent = self.failures == 0 && self.waiting.iter().any(|alert| alert.kind == Kind::Contradicted);
        match (self.waiting.is_empty(), self.rests_until) {
            (true, _) => None,
            (false, Some(until)) if !is_urgent => Some(until.max(now)),
            (false, _) => Some(now),
        }
    }

    /// The next message: everything that waits and goes into one; or the last one, if it may have arrived or not.
    pub fn message(&mut self) -> Vec<Alert> {
        if self.undecided == 0 {
            self.undecided = self.waiting.len().min(self.limit);
        }
        self.waiting.iter().take(self.undecided).cloned().collect()
    }

    /// The message ended at `now`; `chance` is between 0 and 1. The number of the last alert that is done with, if there is
    /// one. Of a message that was refused, it may have been one alert alone: it comes again in halves.
    pub fn sent(&mut self, sent: Sent, now: Timestamp, chance: f64) -> Option<u64> {
        if sent == Sent::Refused && self.undecided > 1 {
            self.limit = self.undecided / 2;
            (self.undecided, self.failures, self.rests_until) = (0, 0, None);
            return None;
        }
        let pause = match sent {
            Sent::Accepted | Sent::Refused => {
                self.failures = 0;
                match self.undecided >= self.most {
                    true => self.between.min(AFTER_A_FULL_ONE),
                    false => self.between,
                }
            }
            Sent::Later(asked) => {
                let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
                self.failures += 1;
                // Half as long to half as long again, so that not everybody comes back at once.
                let jittered = SignedDuration::try_from_secs_f64(doubled.as_secs_f64() * (0.5 + chance));
                asked.map_or(jittered.unwrap_or(doubled), |asked| asked.clamp(FIRST_PAUSE, LONGEST_RETRY_AFTER))
            }
        };
        self.rests_until = Some(now.saturating_add(pause).unwrap_or(now));
        match sent {
            Sent::Later(_) => None,
            Sent::Accepted | Sent::Refused => {
                let done = std::mem::take(&mut self.undecided).min(self.waiting.len());
                self.limit = self.most;
                self.waiting.drain(..done).next_back().map(|last| last.number)
            }
        }
    }

    /// Whether the last message did not arrive.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// How many alerts wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Episode;
    use crate::assess::first_seen;
    use deadlight_shared::FindingId;

    const BETWEEN: SignedDuration = SignedDuration::from_secs(30);

    fn alert(number: u64, kind: Kind) -> Alert {
        let (node, address, port) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap(), "80/tcp".parse().unwrap());
        let id = FindingId::of(&node, address, port);
        let episode = Episode::new(number, at(0));
        Alert { number, at: at(0), kind, episode, finding: first_seen(&id, node, address, port, at(0)), why: None }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_first_alert_goes_at_once_and_what_follows_goes_together() {
        let mut queue = Queue::new(Vec::new(), 0, BETWEEN, 500);
        assert_eq!(queue.due(at(0)), None);
        queue.push([alert(1, Kind::Exposed)]);
        assert_eq!(queue.due(at(5)), Some(at(5)));
        assert_eq!(queue.message().len(), 1);
        assert_eq!(queue.sent(Sent::Accepted, at(5), 0.5), Some(1));
        assert_eq!(queue.due(at(6)), None);
        queue.push((2..=9_999).map(|number| alert(number, Kind::Exposed)));
        assert_eq!(queue.due(at(6)), Some(at(35)), "they wait for each other");
        assert_eq!(queue.message().len(), 500);
        assert_eq!(queue.sent(Sent::Accepted, at(35), 0.5), Some(501));
        assert_eq!((queue.len(), queue.due(at(35))), (9_498, Some(at(36))), "a full message waits for nobody");
        queue.push([alert(10_000, Kind::Contradicted)]);
        assert_eq!(queue.due(at(35)), Some(at(35)), "nothing holds a contradiction back");
    }

    #[test]
    fn a_sink_that_fails_loses_nothing_and_is_asked_more_and_more_rarely() {
        let mut queue = Queue::new(vec![alert(1, Kind::Exposed), alert(2, Kind::Contradicted)], 0, BETWEEN, 9);
        let mut now = at(0);
        assert_eq!(queue.message().len(), 2);
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert_eq!(queue.sent(Sent::Later(None), now, 0.5), None);
            assert_eq!(
                queue.due(now),
                Some(at(now.as_second() + pause)),
                "also a contradiction waits for a sink that fails"
            );
            queue.push([alert(3, Kind::Exposed)]);
            assert_eq!(queue.message().len(), 2, "it may have arrived, and comes again as it was");
            now = at(now.as_second() + pause);
        }
        assert_eq!(queue.sent(Sent::Accepted, now, 0.5), Some(2));
        assert_eq!(queue.message().len(), 9);
    }

    #[test]
    fn a_message_that_may_have_arrived_comes_again_as_it_was_also_after_a_restart() {
        let left = || (3..=9).map(|number| alert(number, Kind::Exposed)).collect::<Vec<_>>();
        let numbers = |queue: &mut Queue| queue.message().iter().map(|alert| alert.number).collect::<Vec<_>>();
        let mut queue = Queue::new(left(), 5, BETWEEN, 500);
        assert_eq!(numbers(&mut queue), [3, 4, 5]);
        assert_eq!(queue.sent(Sent::Accepted, at(0), 0.5), Some(5));
        assert_eq!(numbers(&mut queue), [6, 7, 8, 9]);
        for offered in [0, 2] {
            assert_eq!(
                numbers(&mut Queue::new(left(), offered, BETWEEN, 500)).len(),
                7,
                "it was told of all up to {offered}"
            );
        }
    }

    #[test]
    fn pauses_differ_by_chance_and_by_what_the_sink_asks_for() {
        let after = |sent, chance| {
            let mut queue = Queue::new(vec![alert(1, Kind::Exposed)], 0, BETWEEN, 500);
            queue.message();
            queue.sent(sent, at(0), chance);
            queue.due(at(0)).unwrap().as_millisecond()
        };
        assert_eq!((after(Sent::Later(None), 0.0), after(Sent::Later(None), 1.0)), (500, 1_500));
        let asked = |seconds| after(Sent::Later(Some(SignedDuration::from_secs(seconds))), 0.5);
        assert_eq!([asked(0), asked(17), asked(999_999)], [1_000, 17_000, 3_600_000]);
    }

    #[test]
    fn one_alert_that_is_refused_takes_no_other_with_it() {
        const BAD: u64 = 300;
        let mut queue = Queue::new((1..=500).map(|number| alert(number, Kind::Exposed)).collect(), 0, BETWEEN, 500);
        let (mut accepted, mut messages) = (Vec::new(), 0);
        while !queue.is_empty() {
            messages += 1;
            let message: Vec<u64> = queue.message().iter().map(|alert| alert.number).collect();
            match message.contains(&BAD) {
                true => {
                    let done = queue.sent(Sent::Refused, at(0), 0.5);
                    assert_eq!(done, (message == [BAD]).then_some(BAD));
                }
                false => {
                    assert_eq!(queue.sent(Sent::Accepted, at(0), 0.5), message.last().copied());
                    accepted.extend(message);
                }
            }
        }
        assert_eq!(accepted, (1..=500).filter(|number| *number != BAD).collect::<Vec<_>>());
        assert!(messages < 100, "{messages} messages");
    }
}
