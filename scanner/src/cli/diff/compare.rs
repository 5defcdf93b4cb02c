//! One saved scan against another. A scan lists what is neither closed nor filtered, so what it does
//! not list is known only where it is complete and looked; everything else stays unknown. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use deadlight_shared::{Name, Port, PortSet, PortState};
use serde::{Serialize, Serializer};

use super::saved::{Saved, Target};

/// What a scan says of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// It lists it.
    Seen(PortState),
    /// It asked and does not list it.
    ClosedOrFiltered,
    /// It could not ask, does not say whether it did, or does not believe the answer.
    Unknown,
    /// It did not look there.
    NotScanned,
}

/// How the views of two scans differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Open, and known not to be before.
    Opened,
    /// Known not to be open any more.
    Gone,
    /// Another state.
    Changed,
    /// Not known in one of the scans.
    Unclear,
}

/// One target that the scans do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) kind: Kind,
    pub(super) target: Target,
    pub(super) before: View,
    pub(super) after: View,
}

/// What only one of the scans looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) ports: PortSet,
    pub(super) addresses: Vec<(Name, IpAddr)>,
}

/// What two scans do not agree on.
#[derive(Debug)]
pub(super) struct Comparison {
    /// In the order of their targets.
    pub(super) changes: Vec<Change>,
    pub(super) only_before: Reach,
    pub(super) only_after: Reach,
    /// Whether both looked at the same, and were as complete.
    pub(super) same_scope: bool,
}

/// Compares two scans.
pub(super) fn compare(before: &Saved, after: &Saved) -> Comparison {
    let scopes = [Scope::of(before), Scope::of(after)];
    let targets: BTreeSet<&Target> = before.states.keys().chain(after.states.keys()).collect();
    let change = |target: &Target| {
        let (before, after) = (scopes[0].view(before, target), scopes[1].view(after, target));
        Some(Change { kind: kind(before, after)?, target: target.clone(), before, after })
    };
    let [only_before, only_after] = [scopes[0].without(&scopes[1]), scopes[1].without(&scopes[0])];
    let same_scope = before.complete == after.complete
        && before.scanned.is_some() == after.scanned.is_some()
        && only_before == Reach::default()
        && only_after == Reach::default();
    Comparison { changes: targets.into_iter().filter_map(change).collect(), only_before, only_after, same_scope }
}

impl Comparison {
    /// Whether the scans agree on everything.
    pub(super) fn is_equal(&self) -> bool {
        self.changes.is_empty() && self.same_scope
    }

    /// Number of changes of one kind.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.changes.iter().filter(|change| change.kind == kind).count()
    }
}

impl View {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Seen(state) => state.as_str(),
            Self::ClosedOrFiltered => "closed|filtered",
            Self::Unknown => "unknown",
            Self::NotScanned => "not-scanned",
        }
    }

    /// Whether it is open; `None` when that is not known.
    fn is_open(self) -> Option<bool> {
        match self {
            Self::Seen(PortState::Open) => Some(true),
            Self::Seen(PortState::Closed | PortState::Filtered) | Self::ClosedOrFiltered => Some(false),
            Self::Seen(PortState::OpenFiltered | PortState::Unknown) | Self::Unknown | Self::NotScanned => None,
        }
    }

    fn is_known(self) -> bool {
        matches!(self, Self::Seen(_) | Self::ClosedOrFiltered)
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for View {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Opened, Self::Gone, Self::Changed, Self::Unclear];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Gone => "gone",
            Self::Changed => "changed",
            Self::Unclear => "unclear",
        }
    }
}

/// `None` when the views agree, or may.
fn kind(before: View, after: View) -> Option<Kind> {
    match (before.is_known(), after.is_known()) {
        (false, false) => return None,
        (true, true) => {}
        _ => return Some(Kind::Unclear),
    }
    match (before.is_open(), after.is_open()) {
        (Some(false), Some(true)) => Some(Kind::Opened),
        (Some(true), Some(false)) => Some(Kind::Gone),
        // `closed` in one scan may be the `closed|filtered` of the other.
        (Some(false), Some(false)) if before == View::ClosedOrFiltered || after == View::ClosedOrFiltered => None,
        _ => (before != after).then_some(Kind::Changed),
    }
}

/// What a scan looked at, ready to be asked.
struct Scope<'a>(Option<(&'a PortSet, BTreeSet<(&'a Name, IpAddr)>)>);

impl<'a> Scope<'a> {
    fn of(saved: &'a Saved) -> Self {
        Self(saved.scanned.as_ref().map(|scanned| {
            let nodes = scanned.nodes.iter();
            let addresses = nodes.flat_map(|node| node.addresses.iter().map(|address| (&node.node, *address)));
            (&scanned.ports, addresses.collect())
        }))
    }

    fn view(&self, saved: &Saved, target: &Target) -> View {
        match saved.states.get(target) {
            Some(PortState::Unknown) => return View::Unknown,
            Some(PortState::Open) if saved.liars.contains(&target.1) => return View::Unknown,
            Some(state) => return View::Seen(*state),
            None => {}
        }
        let (node, address, port) = target;
        match &self.0 {
            None => View::Unknown,
            Some((ports, addresses)) if !ports.contains(*port) || !addresses.contains(&(node, *address)) => {
                View::NotScanned
            }
            Some(_) if saved.complete => View::ClosedOrFiltered,
            Some(_) => View::Unknown,
        }
    }

    /// What `other` did not look at; nothing when one of them does not say.
    fn without(&self, other: &Self) -> Reach {
        let (Some((ports, addresses)), Some((other_ports, other_addresses))) = (&self.0, &other.0) else {
            return Reach::default();
        };
        let besides = |port: &Port| !other_ports.contains(*port);
        Reach {
            ports: ports.iter().filter(besides).collect(),
            addresses: addresses
                .difference(other_addresses)
                .map(|(node, address)| ((*node).clone(), *address))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::scan::document::{Scanned, ScannedNode};
    use super::*;
    use jiff::Timestamp;

    use PortState::{Closed, Filtered, Open, OpenFiltered};

    const ADDRESS: &str = "192.0.2.1";

    fn target(port: &str) -> Target {
        ("n1".parse().unwrap(), ADDRESS.parse().unwrap(), port.parse().unwrap())
    }

    /// A complete scan of 80, 443 and 8080/tcp and 53/udp.
    fn scan(listed: &[(&str, PortState)]) -> Saved {
        let node = ScannedNode { node: "n1".parse().unwrap(), addresses: vec![ADDRESS.parse().unwrap()] };
        Saved {
            vantage: "office-a".parse().unwrap(),
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            complete: true,
            scanned: Some(Scanned { ports: "80,443,8080/tcp,53/udp".parse().unwrap(), nodes: vec![node] }),
            liars: BTreeSet::new(),
            states: listed.iter().map(|(port, state)| (target(port), *state)).collect(),
        }
    }

    fn changes(before: &Saved, after: &Saved) -> Vec<String> {
        let line = |change: Change| {
            let Change { kind, target: (_, _, port), before, after } = change;
            format!("{} {port} {before} -> {after}", kind.as_str())
        };
        compare(before, after).changes.into_iter().map(line).collect()
    }

    #[test]
    fn what_opens_and_what_goes() {
        let before = scan(&[("80/tcp", Open), ("443/tcp", Open), ("53/udp", OpenFiltered)]);
        let after = scan(&[("80/tcp", Open), ("443/tcp", Filtered), ("8080/tcp", Open), ("53/udp", Open)]);
        let there = ["gone 443/tcp open -> filtered", "opened 8080/tcp closed|filtered -> open"];
        assert_eq!(changes(&before, &after), [&there[..], &["changed 53/udp open|filtered -> open"]].concat());
        let back = ["opened 443/tcp filtered -> open", "gone 8080/tcp open -> closed|filtered"];
        assert_eq!(changes(&after, &before), [&back[..], &["changed 53/udp open -> open|filtered"]].concat());
        for scan in [&before, &after] {
            assert!(compare(scan, scan).is_equal());
        }
    }

    #[test]
    fn a_watched_closed_port_and_an_unlisted_one_may_be_the_same() {
        let [closed, filtered, unlisted] = [&[("80/tcp", Closed)] as &[_], &[("80/tcp", Filtered)], &[]].map(scan);
        for other in [&closed, &filtered] {
            assert!(compare(other, &unlisted).is_equal() && compare(&unlisted, other).is_equal());
        }
        assert_eq!(changes(&closed, &filtered), ["changed 80/tcp closed -> filtered"]);
    }

    #[test]
    fn nothing_is_said_of_what_was_not_observed() {
        let open = scan(&[("80/tcp", Open)]);
        let complete = scan(&[]);
        let incomplete = Saved { complete: false, ..scan(&[]) };
        let asked = Saved { complete: false, ..scan(&[("80/tcp", PortState::Unknown)]) };
        let lied = Saved { complete: false, liars: [ADDRESS.parse().unwrap()].into(), ..scan(&[("80/tcp", Open)]) };
        let early = Saved { scanned: None, ..scan(&[]) };
        let mut narrow = scan(&[]);
        narrow.scanned.as_mut().unwrap().ports = "443/tcp".parse().unwrap();
        let mut elsewhere = scan(&[]);
        elsewhere.scanned.as_mut().unwrap().nodes[0].node = "n2".parse().unwrap();
        for (other, word) in [
            (&incomplete, "unknown"),
            (&asked, "unknown"),
            (&lied, "unknown"),
            (&early, "unknown"),
            (&narrow, "not-scanned"),
            (&elsewhere, "not-scanned"),
        ] {
            assert_eq!(changes(&open, other), [format!("unclear 80/tcp open -> {word}")]);
            assert_eq!(changes(other, &open), [format!("unclear 80/tcp {word} -> open")]);
            assert!(!compare(&complete, other).is_equal(), "{word}: nothing listed is not nothing open");
            assert!(compare(other, other).is_equal());
        }
        assert_eq!(changes(&narrow, &asked), [""; 0], "two scans that do not know do not differ in what they know");
    }

    #[test]
    fn what_only_one_scan_looked_at_is_named() {
        let wide = scan(&[]);
        let mut narrow = scan(&[]);
        narrow.scanned.as_mut().unwrap().ports = "443/tcp,9000/tcp".parse().unwrap();
        narrow.scanned.as_mut().unwrap().nodes[0].addresses.push("2001:db8::1".parse().unwrap());
        let found = compare(&wide, &narrow);
        assert_eq!(found.only_before.ports.to_string(), "80/tcp,8080/tcp,53/udp");
        assert_eq!(found.only_before.addresses, []);
        assert_eq!(found.only_after.ports.to_string(), "9000/tcp");
        assert_eq!(found.only_after.addresses, [("n1".parse().unwrap(), "2001:db8::1".parse().unwrap())]);
    }
}
