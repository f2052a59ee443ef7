//! Random histories: whatever happens in whatever order, the table's promises hold after each step.

mod fairness;
mod world;

use proptest::prelude::*;

use super::*;
use fairness::{Caller, Town};
use world::{Step, World};

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = || any::<u16>().prop_map(usize::from);
    let register = (1..4_u32, 0..3_u32, 1..4_u32, proptest::bool::weighted(0.2));
    let ended = prop_oneof![
        2 => Just(Ended::Served),
        1 => Just(Ended::Abandoned),
        1 => Just(Ended::Lost),
    ];
    let step = prop_oneof![
        2 => register.prop_map(|(concurrency, min, max, is_single_use)| {
            Step::Register { concurrency, min, max: max.max(min), is_single_use }
        }),
        1 => which().prop_map(Step::Warm),
        1 => (which(), 0..3_u32).prop_map(|(which, min)| Step::Keep { which, min }),
        12 => which().prop_map(Step::Call),
        2 => which().prop_map(Step::GiveUp),
        8 => (which(), ended).prop_map(|(which, ended)| Step::Release { which, ended }),
        8 => which().prop_map(Step::Started),
        2 => which().prop_map(Step::Failed),
        2 => which().prop_map(Step::Ended),
        4 => (which(), any::<bool>())
            .prop_map(|(which, is_crash)| Step::Removed { which, is_crash }),
        1 => which().prop_map(Step::Retire),
        1 => which().prop_map(Step::Close),
        2 => (0..40_000_u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn promises_hold_in_every_history(steps in steps()) {
        live_through(&steps);
    }
}

/// Takes the steps, checks after each, and brings everything to its end.
fn live_through(steps: &[Step]) {
    let mut world = World::new();
    for step in steps {
        world.take(step);
        world.check_hope();
    }
    world.retire_all();
    world.finish();
    world.check_empty();
}

/// Two services are owed a place of a third's, and are gone before its calls have ended: the shortest
/// history in which more places were owed than there were services.
fn two_places_owed() -> [Step; 14] {
    let register =
        |concurrency, min, max| Step::Register { concurrency, min, max, is_single_use: false };
    let [busy, second, third] = [0, 1, 2];
    [
        // Three of the four places, and as many calls as they can run.
        register(2, 0, 3),
        Step::Call(busy),
        Step::Release { which: 0, ended: Ended::Served },
        Step::Call(busy),
        Step::Call(busy),
        Step::Call(busy),
        // Wants two places and finds one.
        register(1, 2, 2),
        Step::Started(0),
        Step::Call(busy),
        Step::Started(0),
        Step::Call(second),
        // Finds none, since the one that failed to start is tried again.
        register(1, 0, 1),
        Step::Failed(1),
        Step::Warm(third),
    ]
}

#[test]
fn more_places_may_be_owed_than_services_are_left() {
    live_through(&two_places_owed());
}

/// Whoever comes next waits for the places that are owed already; no other becomes owed for it.
#[test]
fn a_place_stays_owed_when_whoever_waited_is_gone() {
    let mut world = World::new();
    let mut take = |steps: &[Step]| {
        for step in steps {
            world.take(step);
            world.check_hope();
        }
        world.owed()
    };
    assert_eq!(take(&two_places_owed()), 2);
    assert_eq!(take(&[Step::Close(2), Step::Close(1), Step::Failed(0), Step::Wait(0)]), 2);
    // One takes the place that is left. The next one waits for those that are owed.
    let register = || Step::Register { concurrency: 1, min: 0, max: 1, is_single_use: false };
    assert_eq!(take(&[register(), Step::Call(1), register(), Step::Call(2)]), 2);
    world.retire_all();
    world.finish();
    world.check_empty();
}

/// The longest call of the hosts below, in milliseconds.
const LONGEST: u64 = 60_000;

fn callers(most: usize) -> impl Strategy<Value = Vec<Caller>> {
    let caller = (1..30_u32, 1..4_u32, 0..200_000_u64)
        .prop_map(|(calls, concurrency, from)| Caller { calls, concurrency, from });
    proptest::collection::vec(caller, 1..=most)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// As long as no more functions call than there are places, each of them has one after no
    /// longer than the longest call takes, and what is on its way out needs to end.
    #[test]
    fn nobody_is_starved(
        (instances, callers) in (1..10_u32).prop_flat_map(|n| (Just(n), callers(n as usize))),
        is_kept in any::<bool>(),
        durations in proptest::collection::vec(1..=LONGEST, 1..20),
    ) {
        let mut limits = PoolLimits::for_instances(instances);
        if !is_kept {
            limits.reserve = 0;
        }
        let town = Town::new(limits, &callers, durations);
        let waited = town.live(600_000);
        prop_assert!(waited <= LONGEST + 1100, "{waited} ms");
    }

    /// A function that comes to a host full of another's calls has its place at once.
    #[test]
    fn a_place_is_kept_for_whoever_comes(
        instances in 2..40_u32,
        concurrency in 1..4_u32,
        newcomers in 1..10_usize,
    ) {
        let limits = PoolLimits::for_instances(instances);
        let greedy = Caller { calls: 400, concurrency, from: 0 };
        let newcomer = Caller { calls: 1, concurrency: 1, from: 5_000 };
        let newcomers = newcomers.min((instances as usize / 8).max(1));
        let callers: Vec<_> =
            std::iter::once(greedy).chain(std::iter::repeat_n(newcomer, newcomers)).collect();
        let waited = Town::new(limits, &callers, vec![LONGEST]).live(30_000);
        prop_assert_eq!(waited, 0);
    }
}
