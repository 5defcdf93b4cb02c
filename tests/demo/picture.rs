//! The demo as a picture: what it says, coloured as on a terminal.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anstyle_svg::Term;
use anyhow::{Context as _, Result, ensure};

/// Columns; what is longer goes on in the next line.
const WIDTH: usize = 150;
/// The parts that are the loop; the others are for whoever runs it.
const SHOWN: [&str; 3] = ["A node, a real dockerd", "3. The loop", "4. Docker puts"];

/// Runs the demo and draws its loop into `file`.
pub(crate) fn draw(file: &Path) -> Result<()> {
    let mut demo = Command::new(env::current_exe()?);
    let output = demo.env("CLICOLOR_FORCE", "1").stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the demo ended with {}", output.status);
    let said = String::from_utf8(output.stdout)?;
    let parts: Vec<_> = said.split("\n\n").filter(|part| SHOWN.iter().any(|title| part.contains(title))).collect();
    ensure!(parts.len() == SHOWN.len(), "the demo has other parts than {SHOWN:?}");
    let lines = parts.join("\n\n");
    let text: String = lines.trim_start().lines().map(|line| wrapped(line) + "\n").collect();
    fs::write(file, Term::new().render_svg(&text)).with_context(|| format!("write {}", file.display()))
}

/// Broken between words. Escape sequences, which stand around first words only, take no room.
fn wrapped(line: &str) -> String {
    const INDENT: &str = "\n         ";
    let (mut text, mut column) = (String::new(), 0);
    for word in line.split_inclusive(' ') {
        let escapes = word.split('\u{1b}').skip(1).filter_map(|rest| rest.find('m')).map(|end| end + 2).sum::<usize>();
        let width = word.chars().count() - escapes;
        if column + width > WIDTH {
            text.push_str(INDENT);
            column = INDENT.len() - 1;
        }
        text.push_str(word);
        column += width;
    }
    text
}
