//! What may be shown.

/// Demands that every line of `text` is one record that a terminal shows as it is.
pub(crate) fn assert_lines(text: &str) {
    text.split('\n').for_each(assert_line);
}

/// Demands that `line` is one line and holds nothing that moves, hides or reorders what stands beside it.
pub(crate) fn assert_line(line: &str) {
    let hostile = line.chars().find(|character| character.is_control() || is_format(*character));
    assert_eq!(hostile, None, "in {line:?}");
}

/// Of Unicode's category Cf, by its table; and what else is never seen.
fn is_format(character: char) -> bool {
    matches!(u32::from(character),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x180e | 0x200b..=0x200f
        | 0x2028..=0x202e | 0x2060..=0x206f | 0xfe00..=0xfe0f | 0xfeff | 0xfff9..=0xfffb | 0x110bd | 0x110cd
        | 0x13430..=0x1343f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe0fff)
}
