//! Distributions of durations, from 1 µs to 60 s with three digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// How long things took.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty distribution.
    pub(crate) fn new() -> Self {
        const MINUTE: u64 = 60_000_000_000;
        Self(Histogram::new_with_bounds(1_000, MINUTE, 3).expect("the bounds are constants"))
    }

    /// Counts one duration; one above a minute counts as a minute.
    pub(crate) fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts everything that `other` counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all distributions have the same bounds");
    }

    /// How many durations were counted.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures that tables show.
    pub(crate) fn summary(&self) -> Summary {
        let at = |quantile| microseconds(self.0.value_at_quantile(quantile));
        Summary {
            p50_us: at(0.50),
            p90_us: at(0.90),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: microseconds(self.0.max()),
        }
    }
}

/// Selected quantiles, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The median.
    pub(crate) p50_us: f64,
    /// Nine of ten were faster.
    pub(crate) p90_us: f64,
    /// 99 of 100 were faster.
    pub(crate) p99_us: f64,
    /// 999 of 1000 were faster.
    pub(crate) p999_us: f64,
    /// The slowest.
    pub(crate) max_us: f64,
}

/// Nanoseconds as microseconds with one decimal, which is more than the histogram's three digits.
fn microseconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds / 100 * 100).as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_recorded_durations() {
        let mut latencies = Latencies::new();
        for millis in 1..=1000 {
            latencies.record(Duration::from_millis(millis));
        }
        let summary = latencies.summary();
        for (shown, exact) in [
            (summary.p50_us, 500_000.0),
            (summary.p90_us, 900_000.0),
            (summary.p99_us, 990_000.0),
            (summary.p999_us, 999_000.0),
            (summary.max_us, 1_000_000.0),
        ] {
            assert!((shown - exact).abs() / exact < 0.002, "{shown} for {exact}");
        }
        assert_eq!(latencies.count(), 1000);
    }

    #[test]
    fn a_duration_beyond_the_range_still_counts() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::from_secs(3600));
        assert_eq!(latencies.count(), 1);
        assert!(latencies.summary().max_us >= 60e6);
    }
}
