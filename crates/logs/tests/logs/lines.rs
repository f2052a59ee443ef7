//! What is written can be read.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use logs::{CallPart, LogLimits, Query};
use model::LogEvent;
use protocol::{CallLog, LogStream};

use crate::lab::{ALL, Lab, START, call, end, function, text};

#[test]
fn a_call_is_read_as_it_was_written() {
    let lab = Lab::new();
    let record = lab.function("hello").call(call(1));
    record.write(LogStream::Log, "two\nlines");
    record.write(LogStream::NativeOut, "native ");
    record.write(LogStream::NativeErr, "warning\n");
    record.write(LogStream::NativeOut, "output\nunfin");
    record.write(LogStream::Error, "");
    record.write(LogStream::NativeOut, "ished");
    record.end(end("/path"));
    record.write(LogStream::Log, "late");

    let expected = [
        "log: two\nlines",
        "stderr: warning",
        "stdout: native output",
        "error: ",
        "stdout: unfinished",
        "end: GET /path",
        "log: late",
    ];
    let lines = lab.read("hello", ALL);
    assert_eq!(lines.iter().map(text).collect::<Vec<_>>(), expected);
    assert!(lines.iter().all(|line| line.call == Some(call(1)) && line.at == START));
    assert_eq!(lines[5].event, LogEvent::End(end("/path")));
}

#[test]
fn lines_are_json_for_the_owner_only() {
    let lab = Lab::new();
    lab.function("hello").call(call(1)).end(end("/"));
    lab.store.flush().expect("written");
    let path = lab.path("hello").join("00000001.ndjson");
    let line = std::fs::read_to_string(&path).expect("a file");
    let expected = "{\"at\":1800000000000,\"call\":\"01a3185c-5000-7000-8000-000000000001\",\
         \"event\":\"end\",\"method\":\"GET\",\"path\":\"/\",\"outcome\":\"served\",\"status\":200,\
         \"instance\":\"hello-1\",\"phases\":[1,2,3,4,5,6,7]}\n";
    assert_eq!(line, expected);
    let mode = |path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&lab.path("hello"))), (0o600, 0o700));
}

#[test]
fn a_call_that_was_given_up_keeps_its_last_lines() {
    let lab = Lab::new();
    let record = lab.function("hello").call(call(1));
    record.write(LogStream::NativeErr, "panicked at");
    drop(record);
    assert_eq!(lab.texts("hello"), ["stderr: panicked at"]);
}

#[test]
fn a_call_is_found_by_the_beginning_or_the_end_of_its_id() {
    let lab = Lab::new();
    for number in [0x0a1, 0x0b1, 0x0c2] {
        let record = lab.function("hello").call(call(number));
        // What a function writes is no id of a call.
        record.write(LogStream::Log, "01a3185c-5000-7000-8000-0000000000ff");
        record.end(end("/"));
    }
    let found = |part: &str, most| {
        let part = part.parse::<CallPart>().expect(part);
        lab.store.calls(&function("hello"), &part, most).expect("read")
    };
    assert_eq!(found("000000c2", 9), [call(0xc2)]);
    assert_eq!(found("A1", 9), [call(0xa1)], "in either case");
    assert_eq!(found("1", 9), [call(0xb1), call(0xa1)], "newest first");
    assert_eq!(found("01a3185c-5", 9), [call(0xc2), call(0xb1), call(0xa1)]);
    assert_eq!(found("01a3185c-5", 2), [call(0xc2), call(0xb1)]);
    assert_eq!(found("ff", 9), [], "only written by a call");
    assert_eq!(found("5000", 9), [], "in the middle");
    for text in ["", "x", "a b", &"1".repeat(37)] {
        text.parse::<CallPart>().expect_err(text);
    }
}

#[test]
fn what_an_instance_writes_belongs_to_no_call() {
    let lab = Lab::new();
    let instance = lab.function("hello").instance(&"hello-1".parse().expect("an id"));
    instance.write(LogStream::NativeOut, "listening\nunfinished");
    drop(instance);
    let lines = lab.read("hello", ALL);
    let texts: Vec<_> = lines.iter().map(text).collect();
    assert_eq!(texts, ["stdout: listening", "stdout: unfinished"]);
    assert!(lines.iter().all(|line| line.call.is_none()));
}

#[test]
fn what_goes_beyond_an_instances_allowance_is_left_out_and_said() {
    let limits = LogLimits { per_instance_second_bytes: 1000, ..LogLimits::default() };
    let lab = Lab::with(limits);
    let instance = lab.function("hello").instance(&"hello-1".parse().expect("an id"));
    instance.write(LogStream::NativeOut, &format!("{}\n", "x".repeat(500)));
    instance.write(LogStream::NativeOut, &"y".repeat(900));
    drop(instance);
    let texts = lab.texts("hello");
    assert_eq!(texts.len(), 2);
    let said = "note: about 1000 bytes were left out: instance hello-1 wrote too much at once";
    assert_eq!(texts[1], said);
}

#[test]
fn what_goes_beyond_a_calls_limit_is_left_out_and_said() {
    let lab = Lab::with(LogLimits { per_call_bytes: 1000, ..LogLimits::default() });
    let record = lab.function("hello").call(call(1));
    record.write(LogStream::Log, &"x".repeat(700));
    record.write(LogStream::Log, &"ä".repeat(200));
    record.write(LogStream::NativeOut, "not even this");
    record.write(LogStream::Log, "");
    record.end(end("/"));
    let texts = lab.texts("hello");
    assert_eq!(texts.len(), 4, "{texts:?}");
    assert_eq!(texts[1], format!("log: {}", "ä".repeat(100)));
    assert_eq!(texts[2], "note: 214 bytes were left out: a call may log 1000 bytes");
    assert_eq!(texts[3], "end: GET /");

    let next = lab.function("hello").call(call(2));
    next.write(LogStream::Log, "another call");
    assert_eq!(lab.texts("hello").last().map(String::as_str), Some("log: another call"));
}

#[test]
fn what_is_beyond_a_calls_limit_is_not_made_into_lines() {
    let lab = Lab::with(LogLimits { per_call_bytes: 1000, ..LogLimits::default() });
    let record = lab.function("hello").call(call(1));
    record.write(LogStream::NativeOut, &"\n".repeat(1 << 20));
    record.end(end("/"));
    let texts = lab.texts("hello");
    // Each is stored with about a hundred bytes around it.
    let empty = texts.iter().filter(|text| *text == "stdout: ").count();
    assert!((8..=12).contains(&empty), "{empty} lines");
    let left_out = (1 << 20) - empty;
    let note = format!("note: {left_out} bytes were left out: a call may log 1000 bytes");
    assert_eq!(texts[empty..], [note, "end: GET /".to_owned()]);
}

#[test]
fn a_function_that_never_logged_costs_nothing() {
    let lab = Lab::new();
    let _record = lab.function("hello").call(call(1));
    assert_eq!(lab.texts("hello"), Vec::<String>::new());
    assert!(!lab.path("hello").exists());
    assert!(size_of::<logs::FunctionLog>() < 512);
}

#[test]
fn the_newest_wanted_lines_are_read() {
    let lab = Lab::new();
    for number in 0..10 {
        let record = lab.function("hello").call(call(number % 2));
        record.write(LogStream::Log, &number.to_string());
        lab.pass(Duration::from_millis(10));
    }
    let (first, second) = (Some(call(0)), Some(call(1)));
    for (call, since, limit, expected) in [
        (None, None, 3, &["7", "8", "9"][..]),
        (None, None, 0, &[]),
        (first, None, 99, &["0", "2", "4", "6", "8"]),
        (second, None, 2, &["7", "9"]),
        (None, Some(START + 80), 99, &["8", "9"]),
        (None, Some(START + 81), 99, &["9"]),
        (second, Some(START + 60), 99, &["7", "9"]),
        (Some(crate::lab::call(7)), None, 99, &[]),
    ] {
        let query = Query { call, since, limit };
        let lines: Vec<_> = lab.read("hello", query).iter().map(text).collect();
        let expected: Vec<_> = expected.iter().map(|text| format!("log: {text}")).collect();
        assert_eq!(lines, expected, "{query:?}");
    }
}

#[test]
fn nothing_is_left_of_a_removed_log() {
    let lab = Lab::new();
    let old = lab.function("hello").call(call(1));
    old.write(LogStream::Log, "old");
    lab.store.flush().expect("written");
    old.write(LogStream::Log, "on its way");
    lab.store.remove(&function("hello")).expect("removed");
    old.write(LogStream::Log, "too late");
    old.end(end("/"));
    assert_eq!(lab.texts("hello"), Vec::<String>::new());
    assert!(!lab.path("hello").exists());

    lab.function("hello").call(call(2)).write(LogStream::Log, "new");
    assert_eq!(lab.texts("hello"), ["log: new"]);
    lab.store.remove(&function("never")).expect("nothing to remove");
}

#[test]
fn nothing_is_lost_by_a_shutdown() {
    let lab = Lab::new();
    for number in 0..1000 {
        lab.function("hello").call(call(number)).end(end("/"));
    }
    let lab = lab.reopened(|catalog| {
        let segments = catalog.segments(&function("hello"), 0).expect("segments");
        assert_eq!(segments.iter().map(|segment| segment.lines).sum::<u64>(), 1000);
    });
    assert_eq!(lab.read("hello", ALL).len(), 1000);
    lab.store.shutdown();
    lab.store.shutdown();
    lab.function("hello").call(call(1)).end(end("/"));
    lab.store.read(&function("hello"), ALL).expect_err("it has ended");
}
