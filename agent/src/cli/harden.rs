//! `harden`: everything published is closed to the outside, but what is allowed.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use deadlight_shared::PortSet;
use tokio::signal::unix::{SignalKind, signal};

use super::{complain, hinted, print, warn_unsaved};
use crate::node::{Hardened, Node};

const AGAIN: Duration = Duration::from_secs(5);

pub(super) async fn harden(node: &Node, allow: &PortSet, once: bool, dry_run: bool) -> anyhow::Result<ExitCode> {
    let hardened = node.harden(allow, dry_run).await.map_err(hinted)?;
    print(&describe(&hardened, allow, dry_run))?;
    warn_unsaved(hardened.unsaved.as_ref(), "the rules stand until this node restarts or a running agent undoes them");
    if once || dry_run {
        return Ok(if hardened.unsaved.is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS });
    }
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(AGAIN) => {}
        }
        match node.harden(allow, false).await.map_err(hinted) {
            Ok(hardened) if hardened.written.is_empty() => {}
            Ok(hardened) => print(&describe(&hardened, allow, false))?,
            Err(error) => complain(&error),
        }
    }
}

fn describe(hardened: &Hardened, allow: &PortSet, dry_run: bool) -> String {
    let mut text = String::new();
    for change in &hardened.written {
        let _infallible = write!(text, "{change}");
    }
    for reason in &hardened.refused {
        let _infallible = writeln!(text, "left open: {reason}");
    }
    let closed = if hardened.closed.is_empty() { "nothing".to_owned() } else { hardened.closed.to_string() };
    let summary = match (hardened.written.is_empty(), dry_run) {
        (true, _) => format!("nothing to change: closed to the outside already: {closed}; allowed: {allow}"),
        (false, true) => {
            format!("dry run, nothing was changed; would be closed to the outside: {closed}; allowed: {allow}")
        }
        (false, false) => format!("done and read back; closed to the outside: {closed}; allowed: {allow}"),
    };
    text + &summary + "\n"
}
