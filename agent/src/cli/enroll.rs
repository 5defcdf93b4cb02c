//! `enroll`: this node gets its certificate.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use deadlight_shared::enrol::EnrolLine;
use deadlight_shared::hint::{HintExt as _, Hinted};
use deadlight_shared::{Name, log};

use super::print;
use crate::api::Slots;
use crate::config::{Config, Pull};
use crate::identity::{Document, Enrolled, IdentityError, Keyring, Window, WindowError};
use crate::node::host_name;

/// The longest secret of Docker's; a line has some 100 characters.
const LONGEST_FILE: u64 = 500 << 10;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The line, as `deadlight-scanner enroll` printed it
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    line: Option<String>,
    /// A file with the line, or with those of several nodes, such as a Docker secret
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where this node is enrolled already: replace its key and whom it trusts
    #[arg(long)]
    again: bool,
}

pub(super) async fn run(config: &Config, arguments: Arguments) -> anyhow::Result<ExitCode> {
    let line = match (&arguments.line, &arguments.file) {
        (Some(line), _) => parse(line)?,
        (None, Some(file)) => read(file, config)?,
        (None, None) => bail!("neither a line nor a file with one"),
    };
    if !arguments.again && is_enrolled(config)? {
        return Ok(Err(IdentityError::Again).hint("--again replaces the node's key and whom it trusts")?);
    }
    log::init("warn");
    let Enrolled { node, key, validity } = enroll(config, line).await?;
    let until = validity.to;
    print(&format!(
        "{node} is enrolled until {until} and renews by itself; the fingerprint of its key is {key}\n\
         mode {}: start it with `systemctl enable --now deadlight-agent`, or `deadlight-agent run`\n",
        config.mode
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// For `run --enroll-file`: enrols this node where it is not.
pub(super) async fn enroll_once(config: &Config, file: &Path) -> anyhow::Result<()> {
    if is_enrolled(config)? {
        return Ok(());
    }
    let Enrolled { node, key, validity } = enroll(config, read(file, config)?).await?;
    tracing::info!(%node, %key, until = %validity.to, "enrolled");
    Ok(())
}

/// What this node was enrolled with, or the files of `[tls]`.
pub(super) fn keyring(config: &Config) -> anyhow::Result<Keyring> {
    Keyring::load(config.state_dir.clone(), config.tls.as_ref()).map_err(|error| {
        let remedy = error.remedy();
        Hinted::new(error, remedy).into()
    })
}

fn is_enrolled(config: &Config) -> anyhow::Result<bool> {
    let document = Document::load(&config.state_dir).hint("move it away to enrol this node anew")?;
    Ok(document.pair.is_some())
}

async fn enroll(config: &Config, line: EnrolLine) -> anyhow::Result<Enrolled> {
    if let Some(configured) = config.node.as_ref().filter(|configured| **configured != line.node) {
        return Ok(Err(WindowError::Configured { configured: configured.clone(), named: line.node.clone() })
            .hint("the line is for another node, or `node` in the configuration is wrong")?);
    }
    let window = Window::new(line, &config.state_dir)?;
    let way = match &config.pull {
        Some(_) => "calling".to_owned(),
        None => format!("waiting on {} for", config.listen),
    };
    writeln!(io::stderr(), "{way} the scanner that printed the line, for 10 minutes")
        .context("failed to say what is waited for")?;
    let enrolled = match config.pull.clone() {
        Some(Pull { scanners }) => window.call(scanners).await,
        None => window.wait(config.listen, Slots::new(config.scanners.clone())).await,
    };
    let hint = match enrolled {
        Ok(enrolled) => return Ok(enrolled),
        Err(error @ WindowError::Timeout) => {
            return Ok(Err(error).hint(
                "the line is good for 10 minutes and for one use; `deadlight-scanner enroll NODE` prints a new one, and its \
                 messages say what it meets here",
            )?);
        }
        Err(error @ WindowError::Lost(_)) => {
            return Ok(Err(error).hint(format!(
                "this node is not enrolled and the line is spent: see to it that {} can be written, then \
                 `deadlight-scanner enroll NODE` prints a new line",
                config.state_dir.display()
            ))?);
        }
        Err(error @ WindowError::Server(_)) => (
            error,
            "stop the agent that runs: systemctl stop deadlight-agent; its rules stay. `ss -lntp` shows who listens",
        ),
        Err(error) => (error, "run it as root"),
    };
    Ok(Err(hint.0).hint(hint.1)?)
}

/// The line of this node in `file`.
fn read(file: &Path, config: &Config) -> anyhow::Result<EnrolLine> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).and_then(|opened| opened.take(LONGEST_FILE).read_to_string(&mut text));
    opened.with_context(|| format!("failed to read the enrolment line from {}", file.display()))?;
    own_line(&text, config.node.clone().or_else(host_name).as_ref())
}

fn own_line(text: &str, node: Option<&Name>) -> anyhow::Result<EnrolLine> {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() < 2 {
        parse(text)?;
    }
    let node = node.context("the host name is no node name, and a file may have lines of any node");
    let node = node.hint("set node = \"…\" in the configuration")?;
    // A broken line is its own node's trouble.
    let own = lines.iter().rev().filter_map(|line| line.parse::<EnrolLine>().ok()).find(|line| line.node == *node);
    let own = own.with_context(|| format!("none of the lines, {} in all, is for {node}", lines.len()));
    Ok(own.hint(format!(
        "add the line that `deadlight-scanner enroll {node}` prints, or set node = \"…\" in the configuration to the name \
         that the scanner has for this node"
    ))?)
}

fn parse(text: &str) -> anyhow::Result<EnrolLine> {
    let parsed = text.parse::<EnrolLine>().context("this is no enrolment line");
    Ok(parsed.hint("copy the whole line that `deadlight-scanner enroll NODE` printed")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadlight_shared::KeyId;
    use deadlight_shared::enrol::{SECRET_LENGTH, Secret};

    fn line(node: &str, secret: u8) -> String {
        let authority = KeyId::of_public_key(b"a key");
        EnrolLine { node: node.parse().unwrap(), authority, secret: Secret::new([secret; SECRET_LENGTH]) }.to_string()
    }

    #[test]
    fn each_node_takes_its_own_line_of_a_file() {
        let of = |text: &str, node: &str| own_line(text, Some(&node.parse().unwrap()));
        let taken = |text: &str, node: &str| of(text, node).unwrap().to_string();
        assert_eq!(taken(&line("n1", 1), "n1"), line("n1", 1));
        assert!(of(&line("n1", 1), "n2").is_err(), "another node must not take it");
        assert!(of("deadlight1:n1:cut", "n1").err().unwrap().to_string().contains("no enrolment line"));
        let file = [line("n1", 1), line("n2", 2), "deadlight1:n3:cut".to_owned(), line("n1", 3)].join("\n");
        assert_eq!(taken(&file, "n2"), line("n2", 2));
        assert_eq!(taken(&file, "n1"), line("n1", 3), "a later line replaces an earlier one");
        for stranger in ["n3", "n4"] {
            assert!(
                of(&file, stranger).err().unwrap().to_string().contains("none of the lines, 4 in all"),
                "{stranger}"
            );
        }
    }
}
