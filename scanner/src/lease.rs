//! Which nodes a scanner looks after, where several share the work. Pure: `store/leases.rs` brings it to PostgreSQL.

use std::collections::BTreeMap;

use deadlight_shared::Name;
use jiff::SignedDuration;

/// A node, and who looks after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The node.
    pub node: Name,
    /// The vantage point of the scanner that looks after it, or did last; none where it was given back.
    pub holder: Option<Name>,
    /// How long it holds; negative where it has ended, or was given back, so long ago.
    pub left: SignedDuration,
    /// The vantage point that would like to have it.
    pub wanted: Option<Name>,
}

/// What a scanner does about its part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Nodes that it looks after from now on, or goes on to.
    pub hold: Vec<Name>,
    /// Those that it gives back, because another has too few.
    pub give: Vec<Name>,
    /// Those that it asks others for, because it has too few itself.
    pub want: Vec<Name>,
}

impl Lease {
    fn is_free(&self) -> bool {
        self.holder.is_none() || !self.left.is_positive()
    }
}

/// The part of `me` in `leases`, one of each node that it knows, while `scanners` live, itself among them. What nobody has
/// taken for `patience` is taken in any case: not every scanner need know every node.
pub fn share(me: &Name, leases: &[Lease], scanners: usize, patience: SignedDuration) -> Share {
    let fair = leases.len().div_ceil(scanners.max(1));
    let is_mine = |lease: &&Lease| lease.holder.as_ref() == Some(me);
    let is_wanted = |lease: &&Lease| lease.wanted.as_ref().is_some_and(|wanted| wanted != me);
    let held: Vec<&Lease> = leases.iter().filter(is_mine).collect();
    let mut share = Share::default();
    let surplus = held.len().saturating_sub(fair);
    share.give = held.iter().filter(|lease| is_wanted(lease)).take(surplus).map(|lease| lease.node.clone()).collect();
    share.hold = held.iter().map(|lease| lease.node.clone()).filter(|node| !share.give.contains(node)).collect();
    for lease in leases.iter().filter(|lease| !is_mine(lease) && lease.is_free()) {
        let is_left_over = lease.left < -patience;
        let was_given_away = lease.holder.is_none() && is_wanted(&lease);
        if is_left_over || share.hold.len() < fair && !was_given_away {
            share.hold.push(lease.node.clone());
        }
    }
    let mut others: BTreeMap<&Name, Vec<&Name>> = BTreeMap::new();
    for lease in leases.iter().filter(|lease| !is_mine(lease) && !lease.is_free()) {
        others.entry(lease.holder.as_ref().unwrap_or(me)).or_default().push(&lease.node);
    }
    let spare = others.values().flat_map(|nodes| nodes.iter().take(nodes.len().saturating_sub(fair)));
    share.want = spare.take(fair.saturating_sub(share.hold.len())).map(|node| (*node).clone()).collect();
    share
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: i64 = 40;

    /// Scanners of which each knows some nodes, a table of leases, and a clock in seconds.
    struct World {
        leases: BTreeMap<Name, (Option<Name>, i64, Option<Name>)>,
        alive: BTreeMap<Name, i64>,
        now: i64,
    }

    impl World {
        fn new() -> Self {
            Self { leases: BTreeMap::new(), alive: BTreeMap::new(), now: 0 }
        }

        /// What `store/leases.rs` does in one transaction; the nodes that are held afterwards.
        fn turn(&mut self, me: &Name, nodes: &[Name]) -> Vec<Name> {
            let until = self.now + PATIENCE;
            self.alive.insert(me.clone(), until);
            let lease = |node: &Name| {
                let (holder, until, wanted) = self.leases.get(node).cloned().unwrap_or((None, self.now, None));
                let left = SignedDuration::from_secs(until - self.now);
                Lease { node: node.clone(), holder, left, wanted }
            };
            let leases: Vec<Lease> = nodes.iter().map(lease).collect();
            let scanners = self.alive.values().filter(|until| **until > self.now).count();
            let share = share(me, &leases, scanners, SignedDuration::from_secs(PATIENCE));
            for node in nodes {
                self.leases.entry(node.clone()).or_insert((None, self.now, None));
            }
            for node in &share.hold {
                self.leases.insert(node.clone(), (Some(me.clone()), until, None));
            }
            for node in &share.give {
                self.leases.entry(node.clone()).and_modify(|lease| (lease.0, lease.1) = (None, self.now));
            }
            for node in &share.want {
                self.leases.entry(node.clone()).and_modify(|lease| lease.2 = Some(me.clone()));
            }
            share.hold
        }
    }

    fn names(prefix: &str, count: usize) -> Vec<Name> {
        (0..count).map(|number| format!("{prefix}{number}").parse().unwrap()).collect()
    }

    #[test]
    fn the_first_has_all_and_gives_half_to_the_second_who_takes_all_when_it_dies() {
        let (nodes, scanners) = (names("n", 5), names("s", 2));
        let mut world = World::new();
        assert_eq!(world.turn(&scanners[0], &nodes), nodes);
        let mut held = [Vec::new(), Vec::new()];
        for _ in 0..4 {
            world.now += 10;
            for (scanner, held) in scanners.iter().zip(&mut held) {
                *held = world.turn(scanner, &nodes);
            }
        }
        assert_eq!([held[0].len(), held[1].len()], [3, 2]);
        world.now += PATIENCE - 1;
        assert_eq!(world.turn(&scanners[1], &nodes).len(), 2, "the other may still live");
        world.now += 1;
        assert_eq!(world.turn(&scanners[1], &nodes).len(), 5);
    }

    proptest! {
        /// Whoever lives and dies, whatever each knows: no node has two, and soon none is without.
        #[test]
        fn every_node_has_one_scanner_and_soon(
            known in prop::collection::vec(prop::collection::vec(any::<bool>(), 7), 1..5),
            lives in prop::collection::vec(prop::collection::vec(any::<bool>(), 5), 0..12),
        ) {
            let (nodes, scanners) = (names("n", 7), names("s", known.len()));
            let knows = |scanner: usize| -> Vec<Name> {
                nodes.iter().zip(&known[scanner]).filter(|(_, knows)| **knows).map(|(node, _)| node.clone()).collect()
            };
            let mut world = World::new();
            let mut held = vec![Vec::new(); known.len()];
            let always = vec![true; 5];
            let quiet = std::iter::repeat_n(&lives.last().cloned().unwrap_or(always), 30).cloned().collect::<Vec<_>>();
            for alive in lives.iter().chain(&quiet) {
                world.now += 10;
                for scanner in (0..known.len()).filter(|scanner| alive[*scanner]) {
                    held[scanner] = world.turn(&scanners[scanner], &knows(scanner));
                    let holders = |node: &Name| world.leases[node].0.clone();
                    prop_assert!(held[scanner].iter().all(|node| holders(node) == Some(scanners[scanner].clone())));
                }
            }
            let living: Vec<usize> = (0..known.len()).filter(|scanner| quiet[0][*scanner]).collect();
            for node in &nodes {
                let is_known = living.iter().any(|scanner| knows(*scanner).contains(node));
                let holders = living.iter().filter(|scanner| held[**scanner].contains(node)).count();
                prop_assert_eq!(holders, usize::from(is_known), "{}", node);
            }
            if known.iter().flatten().all(|knows| *knows) && !living.is_empty() {
                let fair = nodes.len().div_ceil(living.len());
                prop_assert!(living.iter().all(|scanner| held[*scanner].len() <= fair), "{:?}", held);
            }
        }
    }
}
