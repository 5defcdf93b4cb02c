use std::collections::BTreeSet;

use super::*;

/// Two of one network, one of another, one of a third that scanners call from.
const FROM: [&str; 4] = ["203.0.113.1", "203.0.113.200", "2001:db8:0:aa::1", "198.51.100.5"];
const WHO: [&str; 2] = ["spiffe://deadlight/scanner/a", "spiffe://deadlight/agent/n1"];
const SLOTS: usize = 256;
const SMALL: Room = Room { slots: 3, each: 2 };

fn scanners() -> Vec<IpNet> {
    vec!["198.51.100.0/28".parse().unwrap()]
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl<T> Door<T> {
    fn lanes(&self) -> [BTreeSet<Ticket>; 3] {
        let tickets = |lane: &Lane<IpNet, T>| lane.standing.keys().copied().collect();
        [tickets(&self.strangers), tickets(&self.expected), self.proven.standing.keys().copied().collect()]
    }

    /// The same, as counted by network and identity.
    fn counted(&self) -> [BTreeSet<Ticket>; 3] {
        let tickets = |lane: &Lane<IpNet, T>| lane.alike.values().flatten().copied().collect();
        [tickets(&self.strangers), tickets(&self.expected), self.proven.alike.values().flatten().copied().collect()]
    }
}

/// What may happen: somebody comes, proves or leaves; the number says who.
#[derive(Debug, Clone, Copy)]
enum Event {
    Enters(usize),
    /// The oldest or the newest of those who have not proven, as this identity.
    Proves(bool, usize),
    /// The oldest or the newest of all.
    Leaves(bool),
}

const EVENTS: [Event; 9] = [
    Event::Enters(0),
    Event::Enters(1),
    Event::Enters(2),
    Event::Enters(3),
    Event::Proves(false, 0),
    Event::Proves(true, 0),
    Event::Proves(true, 1),
    Event::Leaves(false),
    Event::Leaves(true),
];

#[test]
fn every_short_history_keeps_the_bounds_and_evicts_the_oldest() {
    const LENGTH: u32 = 5;
    for history in 0..EVENTS.len().pow(LENGTH) {
        let mut door = Door::with_rooms(scanners(), SMALL, SMALL, SMALL);
        let mut rest = history;
        for _ in 0..LENGTH {
            step(&mut door, EVENTS[rest % EVENTS.len()]);
            rest /= EVENTS.len();
        }
    }
}

#[test]
fn and_so_does_a_long_one() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut door = Door::with_rooms(scanners(), SMALL, SMALL, SMALL);
    let mut was_full = [false; 3];
    for _ in 0..50_000 {
        step(&mut door, EVENTS[rng.usize(..EVENTS.len())]);
        for (lane, standing) in door.lanes().iter().enumerate() {
            was_full[lane] |= standing.len() == SMALL.slots;
        }
    }
    // Of the third network there are never more than a network may have.
    assert_eq!(was_full, [true, false, true]);
}

fn step(door: &mut Door<()>, event: Event) {
    let before = door.lanes();
    let counted = door.callers();
    let end = |set: &BTreeSet<Ticket>, newest: bool| if newest { set.last().copied() } else { set.first().copied() };
    let entered = match event {
        Event::Enters(who) => {
            let ticket = door.enter(ip(FROM[who]), ());
            Some((if who == 3 { 1 } else { 0 }, ticket))
        }
        Event::Proves(newest, who) => {
            let Some(ticket) = end(&(&before[0] | &before[1]), newest) else { return };
            assert!(door.prove(ticket, WHO[who].parse().unwrap()));
            assert!(!door.prove(ticket, WHO[who].parse().unwrap()), "nobody proves twice");
            Some((2, ticket))
        }
        Event::Leaves(newest) => {
            let all = before.iter().fold(BTreeSet::new(), |all, lane| &all | lane);
            let Some(ticket) = end(&all, newest) else { return };
            door.leave(ticket);
            door.leave(ticket);
            assert!(door.lanes().iter().all(|lane| !lane.contains(&ticket)));
            None
        }
    };
    let after = door.lanes();
    assert_eq!(door.counted(), after, "whoever has left is nowhere");
    let gone: Vec<(usize, Ticket)> = (0..3)
        .flat_map(|lane| (&before[lane] - &after[lane]).into_iter().map(move |ticket| (lane, ticket)))
        .filter(|(_, ticket)| entered.is_none_or(|(_, entered)| entered != *ticket))
        .collect();
    if let Some((lane, ticket)) = entered {
        assert!(after[lane].contains(&ticket), "the newest stands");
        assert!(gone.iter().all(|(from, _)| *from == lane), "one lane costs no other a slot: {gone:?}");
        let is_full = before[lane].len() == SMALL.slots;
        match gone[..] {
            [] => assert!(!is_full, "{before:?} {after:?}"),
            [(_, gone)] if is_full => {
                assert!(gone == *before[lane].first().unwrap() || alike(door, lane) == SMALL.each);
            }
            [_] => assert_eq!(alike(door, lane), SMALL.each, "nobody goes while there is room"),
            _ => panic!("more than one had to go: {gone:?}"),
        }
    }
    for (lane, standing) in after.iter().enumerate() {
        assert!(standing.len() <= SMALL.slots && alike(door, lane) <= SMALL.each);
    }
    let callers = door.callers();
    let unproven = gone.iter().filter(|(lane, _)| *lane < 2).count() as u64
        + u64::from(matches!(event, Event::Leaves(_)) && before[2] == after[2] && entered.is_none());
    assert!(callers.strangers - counted.strangers <= 1 && callers.strangers - counted.strangers <= unproven);
    let still = (after[0].len() + after[1].len()) as u64;
    assert_eq!(callers.strangers + callers.proven + still, door.last.0, "each caller is counted once");
}

/// The greatest number that one network or identity has in a lane.
fn alike(door: &Door<()>, lane: usize) -> usize {
    fn most<K: PartialEq>(lane: &Lane<K, ()>) -> usize {
        let keys = || lane.standing.values().map(|(key, ())| key);
        keys().map(|key| keys().filter(|other| *other == key).count()).max().unwrap_or(0)
    }
    match lane {
        0 => most(&door.strangers),
        1 => most(&door.expected),
        _ => most(&door.proven),
    }
}

#[test]
fn the_oldest_goes_and_never_the_newest() {
    let mut door = Door::new(Vec::new(), SLOTS);
    let tickets: Vec<Ticket> =
        (0..1_000u32).map(|number| door.enter(IpAddr::from((0x0a00_0000 + number * 256).to_be_bytes()), ())).collect();
    let [standing, ..] = door.lanes();
    assert_eq!(standing, tickets[tickets.len() - SLOTS..].iter().copied().collect());
    assert_eq!(door.callers().evicted, 1_000 - SLOTS as u64);
}

#[test]
fn one_network_takes_from_itself_alone() {
    for (one, other) in [("203.0.113", "203.0.114.1"), ("2001:db8:0:1", "2001:db8:0:100::1")] {
        let mut door = Door::new(Vec::new(), SLOTS);
        let victim = door.enter(ip(other), ());
        let address = |number: u8| match one.contains(':') {
            true => format!("{one}{number:02x}::{number:x}").replace(":1", ":"),
            false => format!("{one}.{number}"),
        };
        for number in 1..=100 {
            door.enter(ip(&address(number)), ());
        }
        let [standing, ..] = door.lanes();
        assert!(standing.contains(&victim));
        assert_eq!(standing.len(), STRANGERS_EACH + 1, "{one}");
    }
}

#[test]
fn an_ipv4_address_is_one_however_it_is_written() {
    let mut door = Door::new(scanners(), SLOTS);
    for number in 1..=20 {
        door.enter(ip(&format!("::ffff:203.0.113.{number}")), ());
    }
    door.enter(ip("::ffff:198.51.100.5"), ());
    let [strangers, expected, _] = door.lanes();
    assert_eq!((strangers.len(), expected.len()), (STRANGERS_EACH, 1));
}

#[test]
fn a_flood_takes_no_slot_of_a_scanner_or_of_the_proven() {
    let mut door = Door::new(scanners(), SLOTS);
    let calling = door.enter(ip(FROM[3]), ());
    let ordering = door.enter(ip(FROM[0]), ());
    assert!(door.prove(ordering, WHO[0].parse().unwrap()));
    for number in 0..100_000u32 {
        door.enter(IpAddr::from((0x0a00_0000 + number * 256).to_be_bytes()), ());
    }
    let [_, expected, proven] = door.lanes();
    assert!(expected.contains(&calling) && proven.contains(&ordering));
    assert!(door.prove(calling, WHO[0].parse().unwrap()));
    assert_eq!(door.callers().proven, 2);
}

#[test]
fn who_had_to_go_proves_nothing() {
    let mut door = Door::new(Vec::new(), SLOTS);
    let tickets: Vec<Ticket> = (0..=STRANGERS_EACH).map(|_| door.enter(ip(FROM[0]), ())).collect();
    assert!(!door.prove(tickets[0], WHO[0].parse().unwrap()));
    assert!(door.prove(tickets[1], WHO[0].parse().unwrap()));
}

#[test]
fn the_proven_who_had_to_go_and_panics_are_counted() {
    let mut door = Door::new(Vec::new(), SLOTS);
    for _ in 0..PROVEN.each + 2 {
        let ticket = door.enter(ip(FROM[0]), ());
        assert!(door.prove(ticket, WHO[0].parse().unwrap()));
    }
    for _ in 0..3 {
        door.panicked();
    }
    let callers = door.callers();
    assert_eq!((callers.proven, callers.evicted, callers.panics), (PROVEN.each as u64 + 2, 2, 3));
}
