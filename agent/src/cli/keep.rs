//! Keeps in the kernel what shall stand there: looks when a change is announced or an order was left pending, and by a
//! timer besides.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use deadlight_shared::hint;
use futures_util::FutureExt as _;
use tokio::task::block_in_place;
use tokio::time::sleep_until;

use crate::firewall::{Change, is_own_program, legacy_in_use, legacy_tables};
use crate::inventory::{changes, events};
use crate::node::Node;
use crate::reconcile::{End, Pace};

/// Looks for ever. What was lost is put back and remembered with its likely author.
pub(super) async fn keep(node: Arc<Node>, docker_socket: PathBuf) {
    let unheard = |error: &std::io::Error| tracing::warn!(%error, "changes are not announced; a timer looks for them");
    let mut firewall = changes::of_firewall().inspect_err(unheard).ok();
    let mut routes = changes::of_routes().inspect_err(unheard).ok();
    let mut docker = events::watch(docker_socket);
    let mut pace = Pace::new(Instant::now());
    let mut authors = BTreeSet::new();
    let (mut facts_changed, mut undone) = (false, false);
    loop {
        tokio::select! {
            // Who wrote is heard before what was written is looked at.
            biased;
            Some(author) = async { firewall.as_mut()?.recv().await } => {
                if !author.is(is_own_program) {
                    authors.insert(author.to_string());
                    pace.hear(Instant::now());
                }
                continue;
            }
            Some(()) = async { routes.as_mut()?.recv().await } => {
                facts_changed = true;
                pace.hear(Instant::now());
                continue;
            }
            Some(()) = docker.recv() => {
                facts_changed = true;
                pace.hear(Instant::now());
                continue;
            }
            () = node.undone() => {
                undone = true;
                pace.hear(Instant::now());
                continue;
            }
            () = sleep_until(pace.due.into()) => {}
        }
        let started = Instant::now();
        let heard = facts_changed || undone || !authors.is_empty();
        if !heard && !pace.is_old(started) {
            let standing = block_in_place(legacy_tables);
            if let Some(standing) = standing
                && node.is_well(&standing).await
            {
                pace.glance(Instant::now());
                continue;
            }
        }
        // Right after a change Docker may be busy with it, and the rules need none of its words.
        let asks_docker = facts_changed || authors.is_empty();
        let looked = if asks_docker { node.reconcile().await } else { node.restore().await };
        // An order may have been answered while this look waited for its turn.
        let undone_late = node.undone().now_or_never().is_some();
        match &looked {
            // What an order could not write was not lost.
            Ok(written) if (undone || undone_late) && authors.is_empty() => {
                written.iter().flat_map(Change::lines).for_each(|line| tracing::info!(line, "a pending order goes on"));
            }
            Ok(written) => node.remember_drift(written, &likely(&authors, facts_changed)).await,
            Err(error) => tracing::error!("{}", hint::line(error)),
        }
        let end = match looked {
            Err(_) => End::Failed,
            Ok(_) if !asks_docker => End::Unsettled,
            Ok(_) if firewall.as_ref().is_some_and(|firewall| !firewall.is_closed()) && !legacy_in_use() => {
                End::Announced
            }
            Ok(_) => End::Silent,
        };
        pace.look(started, Instant::now(), end);
        if end != End::Failed {
            authors.clear();
            (facts_changed, undone) = (false, false);
        }
        if undone_late {
            undone = true;
            pace.hear(Instant::now());
        }
    }
}

fn likely(authors: &BTreeSet<String>, facts_changed: bool) -> String {
    match authors.iter().map(String::as_str).collect::<Vec<_>>().join(", ") {
        names if !names.is_empty() => names,
        _ if facts_changed => "unknown; Docker or the routes changed just before".to_owned(),
        _ => "unknown; nothing announced a change, as where iptables-legacy is written".to_owned(),
    }
}
