//! How values read on a page. Text of others is short and without control characters; askama escapes the rest. Pure.

use std::fmt::Display;

use deadlight_shared::FindingStatus;
use deadlight_shared::text::printable;
use jiff::{SignedDuration, Timestamp};

use crate::view::{Phase, Track};

/// Longest text of others that is shown.
const SHOWN: usize = 256;

/// Text of others.
pub(super) fn said(text: impl Display) -> String {
    printable(&text.to_string(), SHOWN)
}

pub(super) fn when(at: &Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

pub(super) fn long(age: &SignedDuration) -> String {
    format!("{age:#}")
}

/// The class by which a status is coloured.
pub(super) fn class(status: &FindingStatus) -> &'static str {
    match status {
        status if status.is_over() => "good",
        FindingStatus::Enforced => "doubt",
        _ => "bad",
    }
}

/// `12.50 %`, or nothing where nothing was counted.
pub(super) fn share(part: &u64, whole: &u64) -> String {
    match *whole {
        0 => String::new(),
        whole => format!("{}.{:02} %", part * 100 / whole, part * 10_000 / whole % 100),
    }
}

/// Probes a second, where it is known how long it took.
pub(super) fn pace(probes: &u64, milliseconds: &u64) -> String {
    match *milliseconds {
        0 => String::new(),
        milliseconds => (probes * 1_000 / milliseconds).to_string(),
    }
}

/// What a picture of `track` shows.
pub(super) fn spoken(track: &Track) -> String {
    let sum = |phase| -> u32 { track.bars.iter().filter(|bar| bar.phase == phase).map(|bar| bar.length).sum() };
    let share = |phase| format!("{}.{} %", sum(phase) / 10, sum(phase) % 10);
    format!("open {} of the time, closed and not proven {}", share(Phase::Open), share(Phase::Unproven))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([share(&1, &8), share(&0, &5), share(&1, &0), share(&5, &5)], ["12.50 %", "0.00 %", "", "100.00 %"]);
        assert_eq!([pace(&65_536, &2_000), pace(&1, &0)], ["32768", ""]);
        assert_eq!(when(&Timestamp::from_second(1_800_000_000).unwrap()), "2027-01-15 08:00:00 UTC");
        assert_eq!(long(&SignedDuration::from_secs(61)), "1m 1s");
    }

    #[test]
    fn text_of_others_is_short_and_plain() {
        let shown = said("a\u{1b}[31m\n".to_owned() + &"x".repeat(1_000));
        assert!(shown.len() < 300 && !shown.contains(['\u{1b}', '\n']), "{shown}");
    }
}
