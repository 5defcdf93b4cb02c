use std::collections::BTreeSet;

use deadlight_shared::wire::Mode;
use deadlight_shared::{Evidence, FindingStatus, Observation, PortSet, PortState};

use super::*;
use crate::assess::first_seen;
use crate::round::Scope;
use crate::sweep::Unasked;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn store() -> Store {
    let mut store = Store::new(State::default(), at(1_000));
    store.saved();
    store
}

fn finding(port: &str, status: FindingStatus) -> Finding {
    let (node, address, port) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap(), port.parse().unwrap());
    let id = FindingId::of(&node, address, port);
    Finding { status, ..first_seen(&id, node, address, port, at(1)) }
}

fn seen(port: &str, state: PortState) -> Observation {
    Observation {
        node: "n1".parse().unwrap(),
        address: "192.0.2.1".parse().unwrap(),
        port: port.parse().unwrap(),
        state,
        evidence: Evidence::SynAck,
        attempts: 1,
        service: None,
    }
}

fn sweep(observations: &[Observation], unasked: &str, started: Timestamp) -> Sweep {
    let ports: PortSet = unasked.parse().unwrap_or_default();
    let (node, address) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap());
    let unasked = Unasked { node, address, reason: "no route".to_owned(), ports, attempts: 0 };
    Sweep {
        started,
        finished: started,
        observations: observations.to_vec(),
        unasked: vec![unasked],
        heard: BTreeSet::new(),
        liars: BTreeMap::new(),
        notes: Vec::new(),
        interrupted: false,
        settled: BTreeMap::new(),
        tally: Default::default(),
        duration: Default::default(),
    }
}

/// What a database makes of everything that `store` has for it.
fn written(store: &Store, mut before: State) -> State {
    store.unsaved().iter().for_each(|record| before.apply(record));
    before
}

#[test]
fn a_mark_never_comes_twice() {
    let mut store = Store::new(State::default(), at(1_000));
    assert_eq!(store.next_mark(), OrderMark { epoch: 1_000, sequence: 1 });
    assert_eq!(store.next_mark(), OrderMark { epoch: 1_000, sequence: 2 });
    assert_eq!(store.unsaved().len(), 1, "the last mark is enough");
    let state = written(&store, State::default());
    assert_eq!(Store::new(state.clone(), at(2_000)).next_mark(), OrderMark { epoch: 2_000, sequence: 1 });
    let mut store = Store::new(state, at(5));
    assert_eq!(store.next_mark(), OrderMark { epoch: 1_001, sequence: 1 }, "a clock that went back");
    store.begin_epoch(at(3_000));
    assert_eq!(store.next_mark(), OrderMark { epoch: 3_000, sequence: 1 }, "a clock that was put right");
}

#[test]
fn only_changes_are_written_each_with_its_reason() {
    let mut store = store();
    let why = |_: &Finding| Some(Why::Rescan);
    let open = [finding("80/tcp", FindingStatus::Open), finding("81/tcp", FindingStatus::Open)];
    store.keep(&open, at(10), why);
    let whys = |store: &Store| -> Vec<(String, bool)> {
        let findings = store.unsaved().iter().filter_map(|record| match record {
            Record::Finding { finding, why, .. } => Some((finding.port().to_string(), why.is_some())),
            _ => None,
        });
        findings.collect()
    };
    assert_eq!(whys(&store), [("80/tcp".to_owned(), true), ("81/tcp".to_owned(), true)]);
    assert_eq!(written(&store, State::default()).findings, open);
    store.saved();
    store.keep(&open, at(11), why);
    assert!(store.unsaved().is_empty());
    let mut changed = open.clone();
    changed[0].service = Some("HTTP 200".to_owned());
    changed[1].status = FindingStatus::Enforced;
    store.keep(&changed, at(12), why);
    assert_eq!(
        whys(&store),
        [("80/tcp".to_owned(), false), ("81/tcp".to_owned(), true)],
        "what is behind it is no story"
    );
}

#[test]
fn what_is_seen_differently_is_remembered() {
    let mut store = store();
    let first = [
        seen("80/tcp", PortState::Open),
        seen("81/tcp", PortState::Open),
        seen("82/tcp", PortState::Open),
        seen("53/udp", PortState::OpenFiltered),
    ];
    store.see(&sweep(&first, "", at(10)), Scope::Full);
    let before = written(&store, State::default());
    assert_eq!((before.seen.len(), store.unsaved().len()), (4, 5), "and the mark");
    store.saved();
    store.see(&sweep(&first, "", at(20)), Scope::Full);
    store.see(&sweep(&first[..1], "", at(25)), Scope::Quick);
    assert!(store.unsaved().is_empty(), "a quick sweep has not asked the rest");
    // 80 is shut and watched, 81 is not mentioned, 82 could not be asked.
    store.see(&sweep(&[seen("80/tcp", PortState::Filtered), first[3].clone()], "82/tcp", at(30)), Scope::Full);
    let changes = store.unsaved().iter().skip(1).map(|record| match record {
        Record::Seen { target, seen, at } => {
            format!("{} {:?} {}", target.port, seen.as_ref().map(|seen| seen.state), at.as_second())
        }
        other => format!("{other:?}"),
    });
    let changes: Vec<_> = changes.collect();
    assert_eq!(changes, ["80/tcp Some(Filtered) 30", "81/tcp None 30"]);
    assert_eq!(written(&store, before).seen, store.state().seen);
}

#[test]
fn an_agent_that_is_silent_keeps_what_it_said_last() {
    let (mut store, node) = (store(), "n1".parse().unwrap());
    let answered =
        Contact { asked: at(1), answered: Some(at(1)), mode: Some(Mode::Enforce), trouble: None, warned: None };
    store.contact(&node, answered);
    let trouble = Some("refused".to_owned());
    store.contact(&node, Contact { asked: at(2), answered: None, mode: None, trouble: trouble.clone(), warned: None });
    let wanted = Contact { asked: at(2), answered: Some(at(1)), mode: Some(Mode::Enforce), trouble, warned: None };
    assert_eq!(store.state().contacts[&node], wanted);
}

#[test]
fn a_database_that_stays_away_does_not_fill_the_memory() {
    let mut store = store();
    let mut one = finding("80/tcp", FindingStatus::Open);
    for second in 0..200_000 {
        one.service = Some(second.to_string());
        store.keep(std::slice::from_ref(&one), at(10), |_| None);
    }
    assert!(store.unsaved().len() <= MOST_UNSAVED);
    let state = written(&store, State::default());
    assert_eq!((state.findings, state.episodes), (vec![one], store.state().episodes.clone()));
}

#[test]
fn alerts_are_numbered_and_belong_to_episodes() {
    let mut store = store();
    let mut tell = |status, second| -> Vec<String> {
        store.keep(&[finding("80/tcp", status)], at(second), |_| None);
        let told = store.take_alerts();
        assert!(store.take_alerts().is_empty(), "nothing is told twice");
        told.iter().map(|alert| format!("{} {:?} of {}", alert.number, alert.kind, alert.episode.number)).collect()
    };
    assert_eq!(tell(FindingStatus::Open, 10), ["1 Exposed of 1"]);
    assert_eq!(tell(FindingStatus::Enforced, 11), [""; 0]);
    assert_eq!(tell(FindingStatus::Observed, 12), ["2 Unclosed of 1"]);
    assert_eq!(tell(FindingStatus::Observed, 13), [""; 0]);
    assert_eq!(tell(FindingStatus::Observed, 12 + 86_400), ["3 Reminder of 1"]);
    assert_eq!(tell(FindingStatus::Resolved, 100_000), ["4 Resolved of 1"]);
    assert_eq!(tell(FindingStatus::Reopened, 100_001), ["5 Exposed of 5"]);
    let state = written(&store, State::default());
    assert_eq!((state.alerts, state.episodes.len()), (5, 1));
}

#[test]
fn a_silence_holds_back_beginnings_and_reminders_alone() {
    let mut store = store();
    let (first, second) = (finding("80/tcp", FindingStatus::Open), finding("81/tcp", FindingStatus::Open));
    store.keep(std::slice::from_ref(&first), at(10), |_| None);
    let silence = |finding: &Finding, ends| Silence {
        finding: finding.id.clone(),
        begun: at(11),
        ends: at(ends),
        author: "mia".to_owned(),
        comment: "we know".to_owned(),
    };
    // The longer of two counts, whatever their order.
    store.silence(&[silence(&first, 100_000), silence(&first, 50), silence(&second, 100)]);
    let mut told = |statuses: [FindingStatus; 2], why: Option<Why>, second| -> Vec<String> {
        let [one, two] = statuses;
        store.keep(&[finding("80/tcp", one), finding("81/tcp", two)], at(second), |_| why.clone());
        store.take_alerts().iter().map(|alert| format!("{} {:?}", alert.finding.port(), alert.kind)).collect()
    };
    use FindingStatus::{Failed, Observed, Open, Resolved};
    assert_eq!(told([Open, Open], None, 20), ["80/tcp Exposed"], "what was told before the silence");
    assert_eq!(told([Observed, Observed], None, 30), [""; 0]);
    assert_eq!(told([Failed, Observed], Some(Why::Contradiction), 40), ["80/tcp Contradicted"]);
    assert_eq!(told([Resolved, Observed], None, 99), ["80/tcp Resolved"], "what began aloud ends aloud");
    assert_eq!(told([Resolved, Observed], None, 100), ["81/tcp Exposed"], "the silence is over, and it is still open");
}
