//! Command lines as they are printed, beside what the programs take.

use std::collections::BTreeSet;

/// What is wrong with a line of a block of commands.
pub(super) fn wrong_in_line(line: &str, targets: &BTreeSet<String>) -> Option<String> {
    let Some(words) = shlex::split(line) else { return Some(format!("a shell does not take `{line}`")) };
    let ends = |word: &String| matches!(word.as_str(), "|" | "||" | "&&" | "&" | ";");
    words.split(ends).find_map(|words| wrong(words, targets)).map(|wrong| format!("`{line}`: {wrong}"))
}

fn wrong(words: &[String], targets: &BTreeSet<String>) -> Option<String> {
    let is_before = |word: &&String| *word == "sudo" || *word == "-E" || word.contains('=');
    let skipped = words.iter().take_while(is_before).count();
    let written = words.iter().position(|word| word.starts_with('>')).unwrap_or(words.len());
    let (program, rest) = words.get(skipped..written)?.split_first()?;
    let name = program.rsplit('/').next().unwrap_or_default();
    if name == "make" {
        return wrong_target(rest, targets);
    }
    let command = command(name)?;
    let error = command.try_get_matches_from([name].into_iter().chain(rest.iter().map(String::as_str))).err()?;
    // --help and --version are no errors.
    (error.exit_code() != 0).then(|| error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// What is wrong with a command that a sentence names, with or without all that it needs: `pki rotate-ca` is enough there.
pub(super) fn wrong_in_sentence(span: &str, targets: &BTreeSet<String>) -> Option<String> {
    let words = span.split_whitespace().map(|word| word.trim_matches(['[', ']']).to_owned());
    let words: Vec<String> = words.collect();
    let words = words.strip_prefix(&["sudo".to_owned()]).unwrap_or(&words);
    let (program, rest) = words.split_first()?;
    if program == "make" {
        return wrong_target(rest, targets);
    }
    let mut command = command(program.rsplit('/').next().unwrap_or_default())?;
    command.build();
    let (mut here, mut is_operand) = (&command, false);
    for word in rest {
        match word.strip_prefix("--") {
            Some(flag) => {
                let flag = flag.split('=').next().unwrap_or_default();
                if !here.get_arguments().any(|argument| argument.get_long() == Some(flag)) {
                    return Some(format!("`{span}`: {} has no --{flag}", here.get_name()));
                }
                is_operand = true;
            }
            None if is_operand => {}
            None => match here.find_subcommand(word) {
                Some(below) => here = below,
                None if here.get_positionals().next().is_some() => is_operand = true,
                None => return Some(format!("`{span}`: {} has no `{word}`", here.get_name())),
            },
        }
    }
    None
}

fn command(name: &str) -> Option<clap::Command> {
    match name {
        "deadlight-scanner" => Some(deadlight_scanner::cli::command()),
        "deadlight-agent" => Some(deadlight_agent::cli::command()),
        _ => None,
    }
}

fn wrong_target(words: &[String], targets: &BTreeSet<String>) -> Option<String> {
    let mut named = words.iter().filter(|word| !word.contains('=') && !word.starts_with('-'));
    named.find(|word| !targets.contains(*word)).map(|word| format!("make has no target `{word}`"))
}

/// The targets of a Makefile.
pub(super) fn targets(makefile: &str) -> BTreeSet<String> {
    let rule = |line: &'_ str| -> Option<String> {
        let (name, rest) = line.split_once(':')?;
        let is_target = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (is_target && !rest.starts_with('=')).then(|| name.to_owned())
    };
    makefile.lines().filter_map(rule).collect()
}
