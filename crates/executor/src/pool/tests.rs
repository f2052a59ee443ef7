//! Random histories: whatever happens in whatever order, the table's promises hold after each step.

mod world;

use proptest::prelude::*;

use super::*;
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
        let mut world = World::new();
        for step in &steps {
            world.take(step);
            world.check_hope();
        }
        world.retire_all();
        world.finish();
        world.check_empty();
    }
}
