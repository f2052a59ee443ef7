//! How many instances and spares there should be: numbers in, a number out.
//!
//! Pure functions of what was observed. Not here: instances, clocks, who carries a decision out.

mod rate;

use std::time::Duration;

use model::Scale;

pub use rate::Rate;

/// The first wait after an instance has failed a second time; it doubles from there.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait: a person who has mended the cause should not have to wait for a coffee.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// An instance that has served so many calls has lasted.
const LASTING_CALLS: u64 = 100;
/// An instance that has served and is as old as this has lasted: even if the next one is started
/// at once, that is one start in ten seconds.
const LASTING_LIFE: Duration = Duration::from_secs(10);

/// What a function has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Calls that run in instances that take more.
    pub in_flight: u32,
    /// Calls that wait.
    pub waiting: u32,
}

/// How many instances a function should have now.
pub fn instances(load: Load, scale: &Scale) -> u32 {
    let calls = load.in_flight.saturating_add(load.waiting);
    calls.div_ceil(scale.concurrency.max(1)).max(scale.min).min(scale.max)
}

/// Whether an instance that ends by itself has done enough to be worth its start.
///
/// One that has not counts as a failure, also if it has served: a function that exits after each
/// reply costs a start for every call. One that ends after a longer life may do so on purpose.
pub fn has_lasted(served: u64, lived: Duration) -> bool {
    served >= LASTING_CALLS || (served > 0 && lived >= LASTING_LIFE)
}

/// How long to wait before an instance is started again, after so many failures in a row.
///
/// The first failure is forgiven: instances are lost for reasons that do not come back.
pub fn back_off(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => FIRST_WAIT.saturating_mul(1 << (more - 2).min(16)).min(LONGEST_WAIT),
    }
}

/// What is known about a runtime's cold starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColdStarts {
    /// How many there are in a second, lately.
    pub per_second: f64,
    /// How long a new spare takes.
    pub refill: Duration,
    /// Since the last one.
    pub quiet_for: Duration,
}

/// How many spares there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparePolicy {
    /// As long as the runtime is in use at all.
    pub min: u32,
    /// However many are asked for.
    pub max: u32,
    /// After so long without a cold start, the runtime is not in use.
    pub keep_for: Duration,
}

impl Default for SparePolicy {
    fn default() -> Self {
        Self { min: 1, max: 8, keep_for: Duration::from_secs(10 * 60) }
    }
}

/// How many spares of a runtime should wait.
///
/// Cold starts come as a Poisson process, so while one spare is made, `m` = rate × refill more are
/// asked for on average, with a standard deviation of √m; two of those beyond the average suffice
/// for about 97 of 100 refills.
pub fn spares(seen: ColdStarts, policy: &SparePolicy) -> u32 {
    if seen.quiet_for >= policy.keep_for {
        return 0;
    }
    let meanwhile = (seen.per_second * seen.refill.as_secs_f64()).max(0.0);
    let enough = meanwhile + 2.0 * meanwhile.sqrt();
    (0..policy.max)
        .find(|count| f64::from(*count) >= enough)
        .unwrap_or(policy.max)
        .clamp(policy.min.min(policy.max), policy.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_follow_the_calls_within_their_bounds() {
        let scale = |concurrency, min, max| Scale { concurrency, min, max, ..Scale::default() };
        for (in_flight, waiting, scale, expected, why) in [
            (0, 0, scale(50, 0, 10), 0, "nothing to do, nothing kept"),
            (0, 0, scale(50, 2, 10), 2, "kept although nobody calls"),
            (0, 1, scale(50, 0, 10), 1, "the first call"),
            (0, 50, scale(50, 0, 10), 1, "exactly one instance's worth"),
            (0, 51, scale(50, 0, 10), 2, "one more"),
            (0, 200, scale(50, 0, 10), 4, "a burst gets what it needs, no more"),
            (50, 1, scale(50, 0, 10), 2, "the running ones count"),
            (3, 0, scale(1, 0, 10), 3, "one call each"),
            (0, 10_000, scale(1, 0, 10), 10, "never beyond the most"),
            (u32::MAX, u32::MAX, scale(1, 0, 7), 7, "no overflow"),
        ] {
            assert_eq!(instances(Load { in_flight, waiting }, &scale), expected, "{why}");
        }
    }

    #[test]
    fn an_instance_has_lasted_once_it_was_worth_its_start() {
        let seconds = Duration::from_secs;
        for (served, lived, expected, why) in [
            (0, seconds(0), false, "it ended at once"),
            (0, seconds(3600), false, "it has never served"),
            (1, seconds(1), false, "it ended after its first reply"),
            (99, seconds(9), false, "soon after the start, and after few calls"),
            (100, seconds(1), true, "many calls"),
            (1, seconds(10), true, "a while"),
        ] {
            assert_eq!(has_lasted(served, lived), expected, "{why}");
        }
    }

    #[test]
    fn waits_double_up_to_half_a_minute() {
        for (failures, millis) in [
            (0, 0),
            (1, 0),
            (2, 250),
            (3, 500),
            (4, 1000),
            (8, 16_000),
            (9, 30_000),
            (10_000, 30_000),
        ] {
            assert_eq!(back_off(failures), Duration::from_millis(millis), "{failures}");
        }
    }

    #[test]
    fn spares_follow_the_rate_of_cold_starts() {
        let policy = SparePolicy::default();
        let minute = Duration::from_secs(60);
        for (per_second, refill_millis, quiet_for, expected, why) in [
            (0.0, 50, Duration::ZERO, 1, "a runtime in use has one"),
            (0.01, 50, minute, 1, "also when it is quiet for a while"),
            (0.0, 50, 10 * minute, 0, "gone when unused"),
            (9.0, 50, 10 * minute, 0, "whatever the rate was"),
            (1.0, 50, Duration::ZERO, 1, "one a second hardly ever meets a refill"),
            (10.0, 50, Duration::ZERO, 2, "half a spare meanwhile, give or take"),
            (10.0, 5, Duration::ZERO, 1, "quick refills need fewer"),
            (40.0, 50, Duration::ZERO, 5, "two meanwhile, give or take"),
            (1000.0, 50, Duration::ZERO, 8, "never beyond the most"),
            (f64::NAN, 50, Duration::ZERO, 1, "nonsense counts as none"),
        ] {
            let refill = Duration::from_millis(refill_millis);
            let seen = ColdStarts { per_second, refill, quiet_for };
            assert_eq!(spares(seen, &policy), expected, "{why}");
        }
        let none = SparePolicy { min: 0, max: 0, keep_for: minute };
        let seen = ColdStarts { per_second: 9.0, refill: minute, quiet_for: Duration::ZERO };
        assert_eq!(spares(seen, &none), 0, "switched off");
    }
}
