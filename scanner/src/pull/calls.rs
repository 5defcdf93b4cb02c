//! Which call of a node counts, and how long one is waited for. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use deadlight_shared::Name;

/// An agent that finds nobody pauses for up to 30 s; then it has to reach us.
const FIRST_CALLS: Duration = Duration::from_secs(40);
/// Afterwards a node without a call is away, unless it is about to call anew: its certificate or trust has changed.
const NEXT_CALL: Duration = Duration::from_secs(5);

/// The youngest call of each node.
#[derive(Debug)]
pub(super) struct Calls<C> {
    calls: BTreeMap<Name, (u64, C)>,
    next: u64,
}

impl<C> Calls<C> {
    /// Takes a call in, and gives it a number; the call whose place it takes.
    pub(super) fn put(&mut self, node: Name, call: C) -> (u64, Option<C>) {
        let number = self.next;
        self.next += 1;
        (number, self.calls.insert(node, (number, call)).map(|(_, older)| older))
    }

    /// Forgets call `number`, unless a younger one has its place.
    pub(super) fn remove(&mut self, node: &Name, number: u64) -> Option<C> {
        let is_it = self.calls.get(node).is_some_and(|(youngest, _)| *youngest == number);
        is_it.then(|| self.calls.remove(node)).flatten().map(|(_, call)| call)
    }

    /// The call of `node`, and its number.
    pub(super) fn get(&self, node: &Name) -> Option<(u64, &C)> {
        self.calls.get(node).map(|(number, call)| (*number, call))
    }

    /// All calls.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &C)> {
        self.calls.iter().map(|(node, (_, call))| (node, call))
    }
}

impl<C> Default for Calls<C> {
    fn default() -> Self {
        Self { calls: BTreeMap::new(), next: 0 }
    }
}

/// How long a node's call is waited for by who has `listened` so long.
pub(super) fn patience(listened: Duration) -> Duration {
    FIRST_CALLS.saturating_sub(listened).max(NEXT_CALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_younger_call_wins_and_its_elders_end_takes_nothing_away() {
        let (mut calls, node): (_, Name) = (Calls::default(), "n1".parse().unwrap());
        let (first, none) = calls.put(node.clone(), "first");
        let (second, replaced) = calls.put(node.clone(), "second");
        assert_eq!((none, replaced), (None, Some("first")));
        assert_eq!(calls.remove(&node, first), None);
        assert_eq!(calls.get(&node), Some((second, &"second")));
        assert_eq!(calls.remove(&node, second), Some("second"));
        assert_eq!(calls.get(&node), None);
    }

    #[test]
    fn nodes_do_not_share_calls() {
        let mut calls = Calls::default();
        let [one, other]: [Name; 2] = ["n1", "n2"].map(|name| name.parse().unwrap());
        let (number, _) = calls.put(one, 1);
        assert_eq!(calls.put(other.clone(), 2).1, None);
        assert_eq!(calls.remove(&other, number), None, "a number of another node");
        assert_eq!(calls.iter().map(|(_, call)| *call).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn first_calls_are_waited_for_longer() {
        let seconds = Duration::from_secs;
        assert_eq!(patience(seconds(0)), seconds(40));
        assert_eq!(patience(seconds(30)), seconds(10));
        assert_eq!(patience(seconds(39)), seconds(5));
        assert_eq!(patience(seconds(86_400)), seconds(5));
    }
}
