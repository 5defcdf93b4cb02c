//! The commands that show, and `revert`.

use std::net::IpAddr;
use std::process::ExitCode;

use deadlight_shared::Port;
use deadlight_shared::explained::{section, text};
use deadlight_shared::wire::{ClosedPort, Mode};

use super::{hinted, print, warn_unsaved};
use crate::explain::Question;
use crate::firewall::Change;
use crate::node::{Node, Reverted, Selection};

pub(super) async fn explain(node: &Node, port: Port, address: Option<IpAddr>) -> anyhow::Result<ExitCode> {
    let explanation = node.explain(Question { port, address, from: None }).await.map_err(hinted)?;
    print(&text(&explanation))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn plan(node: &Node) -> anyhow::Result<ExitCode> {
    let inspection = node.inspect().await.map_err(hinted)?;
    if let Some(fault) = inspection.fault {
        return Err(hinted(fault.into()));
    }
    match inspection.change.is_empty() {
        true => print("nothing to do: the kernel holds exactly what the ledger says\n").map(|()| ExitCode::SUCCESS),
        false => print(&inspection.change.to_string()).map(|()| ExitCode::from(1)),
    }
}

pub(super) async fn status(node: &Node) -> anyhow::Result<ExitCode> {
    let status = node.status().await.map_err(hinted)?;
    // A guard of iptables does not count, and says 0.
    let shown = |closed: &ClosedPort| match closed.dropped {
        0 => closed.port.to_string(),
        packets => format!("{} ({packets} packets dropped)", closed.port),
    };
    let closed: Vec<String> = status.closed.iter().map(shown).collect();
    let closed = if closed.is_empty() { "none".to_owned() } else { closed.join(", ") };
    let in_force = if status.in_force { "yes" } else { "NO" };
    let mut text = format!("node: {}\nmode: {}\nclosed: {closed}\nin force: {in_force}\n", status.node, status.mode);
    section(&mut text, "networks that reach the agent's own port", &status.door);
    section(&mut text, "drift since the last report", &status.drift);
    section(&mut text, "problems", &status.problems);
    print(&text)?;
    Ok(if status.in_force { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

pub(super) async fn rules(node: &Node) -> anyhow::Result<ExitCode> {
    let inspection = node.inspect().await.map_err(hinted)?;
    let lines: String = inspection.owned.iter().map(|line| format!("{line}\n")).collect();
    print(if lines.is_empty() { "no rule of ours stands\n" } else { &lines })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn restore(node: &Node) -> anyhow::Result<ExitCode> {
    let written = node.restore().await.map_err(hinted)?;
    let lines: String = written.iter().map(Change::to_string).collect();
    print(match node.mode() {
        Mode::Observe => "observe mode: nothing was changed\n",
        Mode::Enforce if lines.is_empty() => "nothing to restore\n",
        Mode::Enforce => &lines,
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn revert(node: &Node, selection: Selection) -> anyhow::Result<ExitCode> {
    let Reverted { written, unsaved } = node.revert(selection).await.map_err(hinted)?;
    warn_unsaved(unsaved.as_ref(), "a running agent will close again what it holds");
    let summary = match (written.is_empty(), selection) {
        (true, _) => "nothing to revert".to_owned(),
        (false, Selection::All) => "reverted: no rule of ours stands".to_owned(),
        (false, Selection::Port(port)) => format!(
            "reverted: {port} is open again as Docker left it; the next order, or a running `harden`, \
             closes it again unless it is allowed"
        ),
    };
    let lines: String = written.iter().map(Change::to_string).collect();
    print(&format!("{lines}{summary}\n"))?;
    Ok(if unsaved.is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
