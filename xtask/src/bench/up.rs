//! The platform as its users have it: `hearth up`, functions that are deployed through its API, and
//! calls through its front door, with their logs.

pub(crate) mod burst;
pub(crate) mod churn;
pub(crate) mod cold;
mod daemon;
pub(crate) mod many;
pub(crate) mod neighbours;
pub(crate) mod registered;
pub(crate) mod warm;

use super::report::{Column, FAILED};
use crate::load::Outcome;

/// What is said about calls that come in any order to many functions.
const MIXED: [Column; 6] = [
    Column { key: "per_second", heading: "calls/s", decimals: 0 },
    Column { key: "started_per_second", heading: "started/s", decimals: 0 },
    Column { key: "cold_percent", heading: "cold %", decimals: 1 },
    Column { key: "p50_ms", heading: "p50 ms", decimals: 2 },
    Column { key: "p99_ms", heading: "p99 ms", decimals: 1 },
    FAILED,
];

/// The figures of [`MIXED`], of a run during which so many instances were started.
fn mixed_figures(outcome: &Outcome, started: f64) -> Vec<f64> {
    let summary = outcome.latencies.summary();
    let started_per_second = started / outcome.elapsed.as_secs_f64();
    vec![
        outcome.per_second(),
        started_per_second,
        100.0 * started_per_second / outcome.per_second(),
        summary.p50_us / 1e3,
        summary.p99_us / 1e3,
        outcome.failures.total().into(),
    ]
}
