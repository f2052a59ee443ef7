use std::{collections::BTreeSet, time::Duration};

use model::Outcome;

use super::*;

const DOCUMENT: &str = include_str!("../../../../docs/operations/metrics.md");

fn name(text: &str) -> FunctionName {
    text.parse().expect("a name")
}

fn levels() -> Levels {
    Levels {
        instances: vec![("idle", 3), ("busy", 1)],
        spares: vec![("node-22".into(), 2)],
        functions: 5,
        calls_in_flight: 6,
        calls_waiting: 7,
        log_lines_dropped: 8,
    }
}

/// Metrics in which everything has happened once.
fn metrics() -> Metrics {
    let metrics = Metrics::new("1.2.3");
    metrics.function(&name("hello")).ended(Outcome::Served);
    metrics.cold_start("node-22", ColdStart::Spare);
    metrics
}

fn value(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn every_metric_is_documented_and_every_documented_one_exists() {
    let page = metrics().render(levels());
    let metrics = |line: &str| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned);
    let rendered: BTreeSet<_> = page.lines().filter_map(metrics).collect();
    // In the document counters have the `_total` and infos the `_info` that scrapers see.
    let bare = |name: &str| name.trim_end_matches("_total").trim_end_matches("_info").to_owned();
    let documented: BTreeSet<_> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next().map(bare))
        .filter(|name| name.starts_with("hearth_") || name.starts_with("process_"))
        .collect();
    assert_eq!(rendered, documented);
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let series = line.split([' ', '{']).next().expect("a name");
        let is_part = ["_bucket", "_sum", "_count"].iter().any(|end| series.ends_with(end));
        assert!(is_part || DOCUMENT.contains(&format!("`{series}")), "{series}");
    }
}

#[test]
fn calls_are_counted_by_function_and_outcome() {
    let metrics = metrics();
    let hello = metrics.function(&name("hello"));
    hello.ended(Outcome::Served);
    hello.ended(Outcome::TimedOut);
    metrics.function(&name("quiet"));
    let page = metrics.render(levels());
    for (series, expected) in [
        ("hearth_calls_total{function=\"hello\",outcome=\"served\"}", Some(2.0)),
        ("hearth_calls_total{function=\"hello\",outcome=\"timed-out\"}", Some(1.0)),
        ("hearth_calls_total{function=\"hello\",outcome=\"lost\"}", None),
        ("hearth_cold_starts_total{runtime=\"node-22\",kind=\"spare\"}", Some(1.0)),
    ] {
        assert_eq!(value(&page, series), expected, "{series}\n{page}");
    }
    assert!(!page.contains("quiet"), "a function that nobody called is no line");
}

#[test]
fn every_outcome_has_a_counter() {
    let metrics = Metrics::new("1");
    Outcome::ALL.into_iter().for_each(|outcome| metrics.function(&name("hello")).ended(outcome));
    let page = metrics.render(levels());
    for outcome in Outcome::ALL {
        let series = format!("hearth_calls_total{{function=\"hello\",outcome=\"{outcome}\"}}");
        assert_eq!(value(&page, &series), Some(1.0), "{series}");
    }
}

#[test]
fn a_removed_function_is_not_rendered() {
    let metrics = metrics();
    let old = metrics.function(&name("hello"));
    metrics.remove_function(&name("hello"));
    old.ended(Outcome::Served);
    assert!(!metrics.render(levels()).contains("function=\"hello\""));
    metrics.function(&name("hello")).ended(Outcome::Served);
    let series = "hearth_calls_total{function=\"hello\",outcome=\"served\"}";
    assert_eq!(value(&metrics.render(levels()), series), Some(1.0), "from the start again");
}

#[test]
fn phases_are_sorted_into_buckets() {
    let metrics = Metrics::new("1");
    let us = Duration::from_micros;
    for (call, spare) in [(us(10), us(0)), (us(11), us(0)), (us(40_000_000), us(3000))] {
        metrics.phases(&Phases { call, spare, ..Phases::default() });
    }
    let page = metrics.render(levels());
    let call = |bound: &str| {
        value(&page, &format!("hearth_call_phase_seconds_bucket{{le=\"{bound}\",phase=\"call\"}}"))
    };
    for (bound, expected) in [("0.00001", 1.0), ("0.00002", 2.0), ("30.0", 2.0), ("+Inf", 3.0)] {
        assert_eq!(call(bound), Some(expected), "{bound}\n{page}");
    }
    let of = |series: &str| value(&page, &format!("hearth_call_phase_seconds_{series}"));
    assert_eq!(of("count{phase=\"call\"}"), Some(3.0));
    assert_eq!(of("sum{phase=\"call\"}"), Some(40.000_021));
    assert_eq!(of("count{phase=\"spare\"}"), Some(1.0), "only calls that needed one");
    assert_eq!(of("count{phase=\"bind\"}"), Some(0.0));
}

#[test]
fn levels_are_those_of_the_moment() {
    let metrics = metrics();
    let page = metrics.render(levels());
    for (series, expected) in [
        ("hearth_instances{state=\"idle\"}", 3.0),
        ("hearth_spares{runtime=\"node-22\"}", 2.0),
        ("hearth_functions", 5.0),
        ("hearth_calls_in_flight", 6.0),
        ("hearth_calls_waiting", 7.0),
        ("hearth_log_lines_dropped_total", 8.0),
        ("hearth_build_info{version=\"1.2.3\"}", 1.0),
    ] {
        assert_eq!(value(&page, series), Some(expected), "{series}\n{page}");
    }
    let fds = value(&page, "process_open_fds").expect("on Linux");
    assert!(fds >= 3.0, "{fds}");
    let memory = value(&page, "process_resident_memory_bytes").expect("on Linux");
    assert!(memory > 100_000.0, "{memory}");

    let later = metrics.render(Levels::default());
    assert!(!later.contains("node-22\"} 2"), "no spares any more\n{later}");
    assert_eq!(value(&later, "hearth_functions"), Some(0.0));
}
