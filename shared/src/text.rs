//! Text from elsewhere: read into values, and made safe to show.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize as _, Deserializer};

/// Reads a value that serde sees as text.
pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// `text` with every control and bidirectional-formatting character escaped, cut after `limit`
/// characters (an ellipsis marks the cut). Safe in a terminal and in a log line.
pub fn printable(text: &str, limit: usize) -> String {
    let mut shown = String::new();
    for (position, character) in text.chars().enumerate() {
        if position == limit {
            shown.push('…');
            break;
        }
        match character.is_control() || is_invisible(character) {
            true => shown.extend(character.escape_unicode()),
            false => shown.push(character),
        }
    }
    shown
}

/// Characters that reorder or hide their neighbours, or are not seen themselves: Unicode's format characters,
/// among them the bidirectional controls; line and paragraph separators, variation selectors and tags.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_break_out_of_a_line() {
        assert_eq!(printable("a\nb\x1b[31m\u{202e}c", 80), "a\\u{a}b\\u{1b}[31m\\u{202e}c");
        assert_eq!(printable("größe", 80), "größe");
        assert_eq!(printable("a\u{ad}\u{fe0f}\u{fffb}", 80), "a\\u{ad}\\u{fe0f}\\u{fffb}");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("abc", 3), "abc");
    }
}
