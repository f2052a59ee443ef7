//! Files are limited in number, size and age.

use std::{fs, time::Duration};

use catalog::Catalog;
use logs::{LogLimits, Query};
use protocol::{CallLog, LogStream};

use crate::lab::{ALL, Lab, START, call, eventually, function};

fn small() -> LogLimits {
    LogLimits { per_function_bytes: 20_000, segment_bytes: 4000, ..LogLimits::default() }
}

fn write(lab: &Lab, name: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let record = lab.function(name).call(call(number));
        record.write(LogStream::Log, &number.to_string());
    }
}

#[test]
fn the_oldest_file_goes_when_all_together_become_too_large() {
    let lab = Lab::with(small());
    for number in 0..1000 {
        write(&lab, "hello", number..number + 1);
        if number % 50 == 0 {
            lab.store.flush().expect("written");
            let sizes: Vec<_> = lab.files("hello").iter().map(|(_, size)| *size).collect();
            assert!(sizes.iter().sum::<u64>() <= 20_000, "{sizes:?}");
            assert!(sizes.iter().all(|size| *size <= 4000), "{sizes:?}");
        }
    }
    let texts = lab.texts("hello");
    assert!(texts.len() > 100, "as much as there is room for: {}", texts.len());
    let expected: Vec<_> = (0..1000).map(|number| format!("log: {number}")).collect();
    assert_eq!(texts, expected[1000 - texts.len()..], "the newest, without holes");
}

#[test]
fn the_index_tells_what_is_in_the_files() {
    let lab = Lab::with(small());
    for number in 0..400 {
        lab.pass(Duration::from_millis(1));
        write(&lab, "hello", number..number + 1);
    }
    let lines = lab.read("hello", ALL).len();
    let path = lab.path("hello");
    lab.reopened(|catalog| {
        let segments = catalog.segments(&function("hello"), 0).expect("segments");
        assert!(segments.len() > 3);
        assert_eq!(segments.len(), fs::read_dir(&path).expect("a directory").count());
        for segment in &segments {
            let file = path.join(format!("{:08}.ndjson", segment.number));
            assert_eq!(segment.bytes, fs::metadata(file).expect("a file").len());
            assert!(segment.first_at < segment.last_at);
        }
        assert!(segments.is_sorted_by(|one, next| one.last_at < next.first_at));
        let indexed: u64 = segments.iter().map(|segment| segment.lines).sum();
        assert_eq!(indexed, u64::try_from(lines).expect("few"));
    });
}

#[test]
fn old_lines_go_even_if_nothing_new_comes() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let limits = LogLimits { sweep_every: Duration::from_millis(10), ..LogLimits::default() };
    let lab = Lab::with(limits);
    write(&lab, "hello", 0..1);
    lab.store.flush().expect("written");
    lab.pass(6 * DAY);
    write(&lab, "hello", 1..2);
    assert_eq!(lab.texts("hello"), ["log: 0", "log: 1"], "within their age");

    lab.pass(DAY);
    // The clock stands exactly where the first line has reached its age.
    assert_eq!(lab.texts("hello"), ["log: 0", "log: 1"], "still within their age");
    lab.pass(Duration::from_millis(1));
    eventually("the old line goes", || lab.texts("hello") == ["log: 1"]);

    let lab = lab.reopened(|_| {});
    lab.pass(6 * DAY);
    eventually("everything goes", || !lab.path("hello").exists());
    let indexed = || lab.catalog.segments(&function("hello"), 0).expect("segments");
    eventually("the index, too", || indexed().is_empty());
}

#[test]
fn files_from_before_a_call_are_not_read_for_it() {
    let lab = Lab::with(small());
    lab.clock.store(START - 3_600_000, std::sync::atomic::Ordering::Relaxed);
    write(&lab, "hello", 100..200);
    lab.clock.store(START, std::sync::atomic::Ordering::Relaxed);
    write(&lab, "hello", 0..1);
    lab.store.flush().expect("written");
    let first = lab.path("hello").join("00000001.ndjson");
    let lab = lab.reopened(|_| {
        // What is in that file cannot be of this call, says the index; so nobody looks.
        let content = fs::read_to_string(&first).expect("a file");
        let other = content.replace(&call(100).to_string(), &call(0).to_string());
        assert_ne!(content, other);
        fs::write(&first, other).expect("written");
    });
    let query = Query { call: Some(call(0)), ..ALL };
    assert_eq!(lab.read("hello", query).len(), 1);
    assert_eq!(lab.read("hello", Query { since: Some(START), ..ALL }).len(), 1);
    assert_eq!(lab.read("hello", ALL).len(), 101);
}

#[test]
fn an_index_that_lags_hides_nothing() {
    let limits = LogLimits { index_every: Duration::from_secs(3600), ..small() };
    let lab = Lab::with(limits);
    write(&lab, "hello", 0..1);
    let lab = lab.reopened(|_| {});
    lab.pass(Duration::from_secs(60));
    write(&lab, "hello", 1..2);
    assert_eq!(lab.read("hello", Query { since: Some(START + 1), ..ALL }).len(), 1);
}

#[test]
fn an_index_that_could_not_be_written_is_written_later() {
    let limits = LogLimits { index_every: Duration::from_millis(1), ..LogLimits::default() };
    let lab = Lab::with(limits);
    lab.catalog.set_broken(true);
    write(&lab, "hello", 0..1);
    eventually("it fails", || lab.catalog.failures() > 0);
    lab.catalog.set_broken(false);
    let indexed = || lab.catalog.segments(&function("hello"), 0).expect("segments");
    eventually("it is tried again", || indexed().len() == 1);
}

#[test]
fn a_removed_log_is_not_indexed_later() {
    let limits = LogLimits { index_every: Duration::from_secs(3600), ..LogLimits::default() };
    let lab = Lab::with(limits);
    write(&lab, "hello", 0..1);
    write(&lab, "other", 0..1);
    lab.store.flush().expect("written");
    lab.store.remove(&function("hello")).expect("removed");
    lab.reopened(|catalog| {
        assert_eq!(catalog.segments(&function("hello"), 0).expect("segments"), []);
        assert_eq!(catalog.segments(&function("other"), 0).expect("segments").len(), 1);
    });
}

#[test]
fn more_functions_log_than_files_may_be_open() {
    let lab = Lab::with(LogLimits { open_files: 3, ..LogLimits::default() });
    for round in 0..5 {
        for function in 0..10 {
            write(&lab, &format!("function-{function}"), round..round + 1);
        }
        lab.store.flush().expect("written");
    }
    for function in 0..10 {
        let texts = lab.texts(&format!("function-{function}"));
        assert_eq!(texts, ["log: 0", "log: 1", "log: 2", "log: 3", "log: 4"]);
    }
}
