//! A kill loses nothing that was written.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use catalog::SqliteCatalog;
use logs::{LogLimits, LogStore};
use protocol::{CallLog, LogStream};

use crate::lab::{ALL, Lab, call, end, function, text};

const DIRECTORY: &str = "LOGS_TEST_DIRECTORY";

fn limits() -> LogLimits {
    LogLimits {
        segment_bytes: 50_000,
        index_every: Duration::from_millis(1),
        ..LogLimits::default()
    }
}

fn open(directory: &Path) -> LogStore {
    let catalog = SqliteCatalog::open(directory).expect("a catalog");
    LogStore::open(&directory.join("logs"), limits(), Arc::new(catalog)).expect("a store")
}

/// Not a test by itself: the process that is killed. It prints how many lines are in the file.
#[test]
fn child_logs_until_it_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let store = open(Path::new(&directory));
    let before = store.read(&function("hello"), ALL).expect("read").len();
    for number in u64::try_from(before).expect("few").. {
        store.function(&function("hello")).call(call(0)).end(end(&format!("/{number}")));
        if number % 64 == 0 {
            store.flush().expect("written");
            println!("\nwritten {number}");
            std::io::stdout().flush().expect("a parent");
        }
    }
}

#[test]
fn what_was_written_is_read_after_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "crash::child_logs_until_it_is_killed", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut written = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("written ")?.parse::<usize>().ok());
        let first = written.by_ref().nth(round).expect("some lines");
        child.kill().expect("killed");
        child.wait().expect("ended");
        let promised = written.last().unwrap_or(first);

        let store = open(directory.path());
        let lines = store.read(&function("hello"), ALL).expect("read");
        assert!(lines.len() > promised, "{} lines of {promised}", lines.len());
        for (number, line) in lines.iter().enumerate() {
            assert_eq!(text(line), format!("end: GET /{number}"));
        }
    }
}

#[test]
fn a_torn_last_line_is_cut_off_before_the_next_one() {
    let lab = Lab::new();
    lab.function("hello").call(call(1)).write(LogStream::Log, "whole");
    lab.store.flush().expect("written");
    let file = lab.path("hello").join("00000001.ndjson");
    let lab = lab.reopened(|_| {
        let mut file = fs::OpenOptions::new().append(true).open(&file).expect("a file");
        file.write_all(b"{\"at\":18000000").expect("torn");
    });
    assert_eq!(lab.texts("hello"), ["log: whole"], "a torn line is not read");
    lab.function("hello").call(call(2)).write(LogStream::Log, "next");
    assert_eq!(lab.texts("hello"), ["log: whole", "log: next"]);
    assert_eq!(lab.files("hello").len(), 1);
}

#[test]
fn an_index_that_was_lost_is_made_again() {
    let lab = Lab::new();
    lab.function("hello").call(call(1)).write(LogStream::Log, "one");
    let lab = lab.reopened(|catalog| {
        catalog.remove_segments(&function("hello"), &[1]).expect("lost");
    });
    lab.function("hello").call(call(2)).write(LogStream::Log, "two");
    assert_eq!(lab.texts("hello"), ["log: one", "log: two"]);
    lab.reopened(|catalog| {
        let segments = catalog.segments(&function("hello"), 0).expect("segments");
        assert_eq!(segments.iter().map(|segment| segment.lines).collect::<Vec<_>>(), [2]);
    });
}
