//! When each exposure was open, for people who look at a picture.

use deadlight_shared::{Finding, FindingStatus};
use jiff::{SignedDuration, Timestamp};

/// A change of a finding's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// When.
    pub at: Timestamp,
    /// The new status.
    pub status: FindingStatus,
}

/// Exposures over a stretch of time that ends now.
#[derive(Debug)]
pub struct Timeline {
    /// Its beginning.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// One line for each finding.
    pub tracks: Vec<Track>,
}

/// One finding.
#[derive(Debug)]
pub struct Track {
    /// The finding.
    pub finding: Finding,
    /// When it was what; nothing where it was neither.
    pub bars: Vec<Bar>,
}

/// A stretch of time, in thousandths of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Where it begins.
    pub begin: u32,
    /// How long it is; at least 1.
    pub length: u32,
    /// What the finding was then.
    pub phase: Phase,
}

/// What a finding was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Open.
    Open,
    /// Closed by its agent, and not proven.
    Unproven,
}

impl Phase {
    /// One word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Unproven => "unproven",
        }
    }

    fn of(status: FindingStatus) -> Option<Self> {
        match status {
            FindingStatus::Resolved | FindingStatus::Accepted => None,
            FindingStatus::Enforced => Some(Self::Unproven),
            _ => Some(Self::Open),
        }
    }
}

impl Timeline {
    /// The time `span` before `now`, with each of `findings` and what became of it, in order.
    pub fn new(findings: Vec<(Finding, Vec<Turn>)>, span: SignedDuration, now: Timestamp) -> Self {
        let from = now.checked_sub(span).unwrap_or(Timestamp::MIN);
        let track = |(finding, turns): (Finding, Vec<Turn>)| Track { bars: bars(&turns, from, now), finding };
        Self { from, to: now, tracks: findings.into_iter().map(track).collect() }
    }
}

fn bars(turns: &[Turn], from: Timestamp, to: Timestamp) -> Vec<Bar> {
    let place = |at: Timestamp| {
        let (passed, whole) = (at.duration_since(from).as_millis(), to.duration_since(from).as_millis().max(1));
        u32::try_from((passed * 1_000 / whole).clamp(0, 1_000)).unwrap_or(0)
    };
    let mut bars: Vec<Bar> = Vec::new();
    for (index, turn) in turns.iter().enumerate() {
        let end = turns.get(index + 1).map_or(to, |next| next.at);
        let Some(phase) = Phase::of(turn.status).filter(|_| end > from) else { continue };
        let begin = place(turn.at).min(999);
        let end = place(end).max(begin + 1);
        match bars.last_mut() {
            Some(last) if last.phase == phase && last.begin + last.length >= begin => last.length = end - last.begin,
            _ => bars.push(Bar { begin, length: end - begin, phase }),
        }
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;
    use FindingStatus::{Enforced, Observed, Open, Reopened, Resolved};

    fn shown(turns: &[(i64, FindingStatus)]) -> Vec<String> {
        let at = |second| Timestamp::from_second(second).unwrap();
        let turns: Vec<_> = turns.iter().map(|(second, status)| Turn { at: at(*second), status: *status }).collect();
        let bars = bars(&turns, at(1_000), at(2_000));
        bars.iter().map(|bar| format!("{}+{} {}", bar.begin, bar.length, bar.phase.as_str())).collect()
    }

    #[test]
    fn a_bar_lasts_from_its_beginning_to_its_end_or_to_now() {
        assert_eq!(shown(&[(1_100, Open), (1_200, Enforced), (1_300, Resolved)]), ["100+100 open", "200+100 unproven"]);
        assert_eq!(shown(&[(1_100, Open), (1_200, Observed)]), ["100+900 open"], "one exposure is one bar");
        assert_eq!(shown(&[(500, Open), (1_500, Resolved), (1_900, Reopened)]), ["0+500 open", "900+100 open"]);
    }

    #[test]
    fn what_was_over_before_is_not_there_and_what_was_short_is() {
        assert!(shown(&[(500, Open), (900, Resolved)]).is_empty());
        assert_eq!(shown(&[(1_500, Open), (1_500, Resolved)]), ["500+1 open"]);
        assert_eq!(shown(&[(2_000, Open)]), ["999+1 open"]);
    }
}
