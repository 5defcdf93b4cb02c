//! Nodes by ports: where something is open, closed or allowed, at a glance.

use std::collections::BTreeMap;

use deadlight_shared::{FindingStatus, Name, Port, PortSet, PortState};

use crate::store::State;

/// Columns that still fit on a screen.
const MOST_PORTS: usize = 20;

/// Some of the nodes, with the ports at which there is something to see.
#[derive(Debug)]
pub struct Matrix {
    /// The columns, those that matter most first.
    pub ports: Vec<Port>,
    /// Ports for which there was no column.
    pub left_out: usize,
    /// The rows, those with something open first.
    pub rows: Vec<Row>,
}

/// One node.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub node: Name,
    /// What is to be seen at each port, the worst of all its addresses.
    pub cells: Vec<Cell>,
}

/// What is to be seen at a port of a node. The worst comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// Nothing.
    Nothing,
    /// Proven closed.
    Closed,
    /// On the allowlist, and not open at any address.
    Missing,
    /// Open, and on the allowlist.
    Allowed,
    /// It could not be asked.
    Unknown,
    /// Closed by the agent, and not proven.
    Unproven,
    /// Open and not allowed.
    Open,
}

impl Cell {
    /// One word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Closed => "closed",
            Self::Allowed => "allowed",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Unproven => "unproven",
            Self::Open => "OPEN",
        }
    }
}

impl Matrix {
    /// Rows `from` to `to` of all `nodes`, each with the ports that may be open on it.
    pub fn new(state: &State, nodes: &[(Name, PortSet)], from: usize, to: usize) -> Self {
        let mut cells: BTreeMap<&Name, BTreeMap<Port, Cell>> =
            nodes.iter().map(|(n, _)| (n, BTreeMap::new())).collect();
        let mut put = |node: &Name, port: Port, cell: Cell| {
            if let Some(ports) = cells.get_mut(node) {
                let worst = ports.entry(port).or_insert(cell);
                *worst = cell.max(*worst);
            }
        };
        let allowed: BTreeMap<&Name, &PortSet> = nodes.iter().map(|(node, ports)| (node, ports)).collect();
        for (target, seen) in &state.seen {
            let may_be_open = allowed.get(&seen.node).is_some_and(|ports| ports.contains(target.port));
            match (seen.state, may_be_open) {
                (PortState::Open, true) => put(&seen.node, target.port, Cell::Allowed),
                (PortState::Closed | PortState::Filtered, true) => put(&seen.node, target.port, Cell::Missing),
                (PortState::Unknown, _) => put(&seen.node, target.port, Cell::Unknown),
                _ => {}
            }
        }
        for finding in &state.findings {
            let cell = match finding.status {
                FindingStatus::Accepted => continue,
                FindingStatus::Resolved => Cell::Closed,
                FindingStatus::Enforced => Cell::Unproven,
                _ => Cell::Open,
            };
            put(&finding.node, finding.port(), cell);
        }
        let worst = |cells: &BTreeMap<Port, Cell>| cells.values().copied().max().unwrap_or(Cell::Nothing);
        let mut rows: Vec<_> = cells.into_iter().collect();
        rows.sort_by(|(a, x), (b, y)| worst(y).cmp(&worst(x)).then_with(|| a.cmp(b)));
        let columns = columns(&rows);
        let ports: Vec<Port> = columns.iter().copied().take(MOST_PORTS).collect();
        let row = |(node, cells): (&Name, BTreeMap<Port, Cell>)| Row {
            node: node.clone(),
            cells: ports.iter().map(|port| cells.get(port).copied().unwrap_or(Cell::Nothing)).collect(),
        };
        let shown = rows.into_iter().skip(from).take(to.saturating_sub(from));
        Self { rows: shown.map(row).collect(), left_out: columns.len() - ports.len(), ports }
    }
}

/// All ports, those that matter most first: by the worst to be seen there, and on how many nodes.
fn columns(rows: &[(&Name, BTreeMap<Port, Cell>)]) -> Vec<Port> {
    let mut weights: BTreeMap<Port, (Cell, usize)> = BTreeMap::new();
    for (port, cell) in rows.iter().flat_map(|(_, cells)| cells) {
        let (worst, count) = weights.entry(*port).or_insert((*cell, 0));
        *worst = (*cell).max(*worst);
        *count += 1;
    }
    let mut ports: Vec<_> = weights.into_iter().collect();
    ports.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    ports.into_iter().map(|(port, _)| port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assess::first_seen;
    use crate::store::{Seen, Target};
    use deadlight_shared::{Finding, FindingId};
    use jiff::Timestamp;

    fn finding(node: &str, address: &str, port: &str, status: FindingStatus) -> Finding {
        let (node, address, port) = (node.parse().unwrap(), address.parse().unwrap(), port.parse().unwrap());
        let id = FindingId::of(&node, address, port);
        Finding { status, ..first_seen(&id, node, address, port, Timestamp::UNIX_EPOCH) }
    }

    fn seen(node: &str, address: &str, port: &str, state: PortState) -> (Target, Seen) {
        let target = Target { address: address.parse().unwrap(), port: port.parse().unwrap() };
        let (node, since) = (node.parse().unwrap(), Timestamp::UNIX_EPOCH);
        (target, Seen { node, state, evidence: String::new(), service: None, since })
    }

    fn shown(matrix: &Matrix) -> Vec<String> {
        let row = |row: &Row| {
            let cells: Vec<_> = row.cells.iter().map(|cell| cell.as_str()).collect();
            format!("{}: {}", row.node, cells.join("|"))
        };
        matrix.rows.iter().map(row).collect()
    }

    #[test]
    fn the_worst_address_of_a_node_is_shown_and_the_worst_node_first() {
        let nodes: Vec<(Name, PortSet)> = [("a", "443/tcp"), ("b", "443/tcp"), ("c", "")]
            .map(|(n, p)| (n.parse().unwrap(), p.parse().unwrap_or_default()))
            .into();
        let state = State {
            findings: vec![
                finding("b", "192.0.2.2", "8080/tcp", FindingStatus::Resolved),
                finding("b", "2001:db8::2", "8080/tcp", FindingStatus::Observed),
                finding("a", "192.0.2.1", "9000/udp", FindingStatus::Enforced),
                finding("a", "192.0.2.1", "9001/tcp", FindingStatus::Accepted),
                finding("gone", "192.0.2.9", "9001/tcp", FindingStatus::Open),
            ],
            seen: [
                seen("a", "192.0.2.1", "443/tcp", PortState::Open),
                seen("a", "2001:db8::1", "443/tcp", PortState::Closed),
                seen("b", "192.0.2.2", "443/tcp", PortState::Filtered),
                seen("c", "192.0.2.3", "443/tcp", PortState::Filtered),
            ]
            .into(),
            ..State::default()
        };
        let matrix = Matrix::new(&state, &nodes, 0, 10);
        assert_eq!(matrix.ports, ["8080/tcp", "9000/udp", "443/tcp"].map(|port| port.parse().unwrap()));
        assert_eq!(shown(&matrix), ["b: OPEN||missing", "a: |unproven|allowed", "c: ||"]);
        assert_eq!(shown(&Matrix::new(&state, &nodes, 1, 2)), ["a: |unproven|allowed"]);
        assert!(shown(&Matrix::new(&state, &nodes, 3, 9)).is_empty());
    }

    #[test]
    fn there_are_no_more_columns_than_fit() {
        let nodes = [("a".parse().unwrap(), PortSet::default())];
        let ports = (1..=30).map(|port| finding("a", "192.0.2.1", &format!("{port}/tcp"), FindingStatus::Resolved));
        let open = finding("a", "192.0.2.1", "65535/tcp", FindingStatus::Open);
        let state = State { findings: ports.chain([open]).collect(), ..State::default() };
        let matrix = Matrix::new(&state, &nodes, 0, 10);
        assert_eq!((matrix.ports.len(), matrix.left_out), (20, 11));
        assert_eq!(matrix.ports.first(), Some(&"65535/tcp".parse().unwrap()), "what is open is not left out");
    }
}
