//! An explanation for people. Pure.

use std::fmt::Write as _;

use crate::text::printable;
use crate::wire::Explanation;

/// Longest line of foreign text that is shown.
const LINE: usize = 300;

/// Who published the port, how it was found out, the way of a packet, whether it may be open, and our lines.
pub fn text(explanation: &Explanation) -> String {
    let Explanation { port, node, cause, .. } = explanation;
    let mut text = format!("{port} on {node}\ncause: {cause}\n");
    section(&mut text, "because", &cause.evidence);
    section(&mut text, "the way of a packet through the rules of others", &explanation.path);
    let allowed = match explanation.allowed_by.as_slice() {
        [] => "allowlist: no entry covers it\n".to_owned(),
        by => format!("allowlist: {}\n", printable(&by.join(", "), LINE)),
    };
    text.push_str(&allowed);
    let ours = match (&explanation.refused, explanation.closed) {
        (Some(reason), _) => {
            let _infallible = writeln!(text, "never closed: {}", printable(reason, LINE));
            None
        }
        (None, true) => Some("closed by"),
        (None, false) => Some("not closed by Deadlight; to close it, these would stand"),
    };
    if let Some(title) = ours {
        section(&mut text, title, &explanation.rules);
    }
    text
}

/// A title and its lines, escaped; nothing where there is no line.
pub fn section(text: &mut String, title: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _infallible = writeln!(text, "{title}:");
    }
    for line in lines {
        let _infallible = writeln!(text, "  {}", printable(line, LINE));
    }
}
