//! Who logs too much harms nobody else, and is told.

use std::time::Duration;

use logs::{LogLimits, Query};
use model::LogEvent;
use protocol::{CallLog, LogStream};

use crate::lab::{ALL, Lab, call, end, text};

/// A lab whose writer is busy until the gate is opened.
fn stalled(limits: LogLimits) -> Lab {
    let lab = Lab::with(limits);
    lab.function("stalled").call(call(0)).end(end("/"));
    lab.store.flush().expect("written");
    // A function's first line after a restart waits for the catalog.
    let lab = lab.reopened(|_| {});
    lab.catalog.shut();
    lab.function("stalled").call(call(0)).end(end("/"));
    lab
}

fn flood(lab: &Lab, name: &str, lines: usize) {
    let record = lab.function(name).call(call(1));
    for _ in 0..lines {
        record.write(LogStream::Log, &"x".repeat(900));
    }
}

#[test]
fn a_flood_is_cut_but_how_calls_ended_is_not() {
    let limits = LogLimits { per_call_bytes: usize::MAX, ..LogLimits::default() };
    let lab = stalled(limits);
    flood(&lab, "flood", 2000);
    for number in 0..500 {
        lab.function("flood").call(call(number)).end(end("/"));
    }
    lab.catalog.open();

    let lines = lab.read("flood", ALL);
    let entries = lines.iter().filter(|line| matches!(line.event, LogEvent::Entry { .. })).count();
    let ends = lines.iter().filter(|line| matches!(line.event, LogEvent::End(_))).count();
    assert!((500..1000).contains(&entries), "three quarters of a MiB: {entries} entries");
    assert_eq!(ends, 500);
    let left_out = 2000 - entries;
    let note = format!("note: {left_out} lines were left out");
    assert!(text(&lines[entries + ends]).starts_with(&note), "{:?}", lines.last());
    assert_eq!(lab.store.left_out(), u64::try_from(left_out).expect("few"));
    assert_eq!(lines.len(), entries + ends + 1);

    flood(&lab, "flood", 1);
    assert_eq!(lab.read("flood", ALL).len(), lines.len() + 1, "there is room again");
}

#[test]
fn a_function_that_floods_takes_nothing_from_others() {
    let limits =
        LogLimits { per_call_bytes: usize::MAX, waiting_bytes: 4 << 20, ..LogLimits::default() };
    let lab = stalled(limits);
    for number in 0..8 {
        flood(&lab, &format!("flood-{number}"), 2000);
    }
    let record = lab.function("quiet").call(call(1));
    for number in 0..10 {
        record.write(LogStream::Log, &number.to_string());
    }
    record.end(end("/"));
    lab.catalog.open();

    let texts = lab.texts("quiet");
    assert_eq!(texts.len(), 11, "{texts:?}");
    assert_eq!(texts[10], "end: GET /");
    let kept: usize = (0..8).map(|number| lab.read(&format!("flood-{number}"), ALL).len()).sum();
    assert!((2000..4000).contains(&kept), "what 4 MiB hold: {kept}");
}

#[test]
fn what_waits_is_limited_whatever_it_is() {
    let lab = stalled(LogLimits::default());
    for number in 0..20_000 {
        lab.function("flood").call(call(number)).end(end("/"));
    }
    lab.catalog.open();
    let lines = lab.read("flood", Query { limit: 100_000, ..ALL });
    assert!((3000..8000).contains(&lines.len()), "what 1 MiB holds: {}", lines.len());
    let left_out = 20_000 - (lines.len() - 1);
    assert_eq!(lab.store.left_out(), u64::try_from(left_out).expect("few"));
}

#[test]
fn a_slow_index_holds_up_no_lines() {
    let limits = LogLimits { index_every: Duration::from_millis(1), ..LogLimits::default() };
    let lab = Lab::with(limits);
    lab.catalog.shut();
    for number in 0..5 {
        let before = lab.files("hello");
        lab.function("hello").call(call(number)).end(end("/"));
        lab.store.flush().expect("written");
        assert_ne!(lab.files("hello"), before);
    }
    lab.catalog.open();
    assert_eq!(lab.texts("hello").len(), 5);
}
