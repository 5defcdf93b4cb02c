//! The whole pair in one process, under simulated time and a seed: the product's own decisions between
//! simulated disks, kernels, clocks and links, and an oracle that knows the truth.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]
#![expect(clippy::print_stderr, reason = "figures, and how to play a seed again")]

mod course;
mod host;
mod oracle;
mod planted;
mod rounds;
mod scanner;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use course::Course;
use planted::PLANTED;
use world::World;

const SEEDS: u64 = 300;
/// Kinds of trouble, each of which must have been.
const KINDS: usize = 21;

#[derive(Debug, Default)]
struct Tally {
    faults: BTreeMap<&'static str, u64>,
    rounds: u64,
    alerts: u64,
    proofs: u64,
    contradictions: u64,
    calls: u64,
    failed: Vec<(u64, String)>,
}

#[test]
fn whatever_goes_wrong_it_ends_as_if_nothing_had() {
    if let Some(seed) = number("SEED") {
        let course = Course::draw(seed);
        eprintln!("{course:#?}");
        let mut world = World::new(course.clone(), seed);
        let played = catch_unwind(AssertUnwindSafe(|| world.play()));
        world.story.iter().for_each(|line| eprintln!("{line}"));
        let calm = World::new(course.undisturbed(), seed).play();
        assert_eq!(played.unwrap_or_else(|reason| std::panic::resume_unwind(reason)), calm);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let (next, tally, started) = (AtomicU64::new(0), Mutex::new(Tally::default()), Instant::now());
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    play(seed, &tally);
                }
            });
        }
    });
    drop(std::panic::take_hook());
    let tally = tally.into_inner().unwrap();
    let each = started.elapsed().as_secs_f64() * 1_000.0 / seeds as f64;
    eprintln!("{seeds} seeds, {each:.1} ms each: {tally:#?}");
    for (seed, reason) in &tally.failed {
        eprintln!("seed {seed}: {reason}");
        eprintln!("  SEED={seed} cargo test -p deadlight-tests --test simulation whatever -- --nocapture");
    }
    assert!(tally.failed.is_empty(), "{} of {seeds} seeds failed", tally.failed.len());
    assert_eq!(tally.faults.len(), KINDS, "not everything went wrong: {:?}", tally.faults);
    assert!(tally.contradictions > 0 && tally.proofs > 0 && tally.alerts > 0, "nothing was at stake: {tally:?}");
}

#[test]
fn each_planted_bug_is_found() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = PLANTED.map(|(planted, said)| {
        let finds = |seed: &u64| {
            let mut world = World::new(Course::draw(*seed), *seed);
            world.planted = Some(planted);
            let reason = catch_unwind(AssertUnwindSafe(|| world.play())).err();
            reason.and_then(|reason| reason.downcast::<String>().ok()).is_some_and(|reason| reason.contains(said))
        };
        (planted, (0..SEEDS).find(finds))
    });
    std::panic::set_hook(quiet);
    eprintln!("the first seed that finds each: {found:?}");
    assert!(found.iter().all(|(_, seed)| seed.is_some()), "{found:?}");
}

fn play(seed: u64, tally: &Mutex<Tally>) {
    let course = Course::draw(seed);
    let mut world = World::new(course.clone(), seed);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let stormy = world.play();
        let calm = World::new(course.undisturbed(), seed).play();
        assert_eq!(stormy, calm, "the end differs from the undisturbed one");
    }));
    let mut tally = tally.lock().unwrap();
    for fault in &course.faults {
        *tally.faults.entry(fault.what.kind()).or_default() += 1;
    }
    tally.rounds += world.scanners.iter().map(|scanner| scanner.rounds).sum::<u64>();
    tally.alerts += world.oracle.alerts;
    tally.proofs += world.oracle.proofs;
    tally.contradictions += world.oracle.contradictions;
    tally.calls += world.calls();
    if let Err(reason) = ended {
        let reason = reason.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
        tally.failed.push((seed, reason));
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}
