//! Lines reach followers when they are written.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use logs::LogLimits;
use protocol::{CallLog, LogStream};

use crate::lab::{ALL, Lab, call, end, eventually, function, text};

#[tokio::test]
async fn lines_are_followed_before_the_call_is_over() {
    let lab = Lab::new();
    let mut follower = lab.store.follow(&function("hello"));
    let record = lab.function("hello").call(call(1));
    record.write(LogStream::Log, "one");
    assert_eq!(text(&follower.next().await.expect("a line")), "log: one");
    lab.function("other").call(call(2)).end(end("/other"));
    record.write(LogStream::NativeOut, "two\n");
    assert_eq!(text(&follower.next().await.expect("a line")), "stdout: two");
    record.end(end("/"));
    let line = follower.next().await.expect("a line");
    assert_eq!((text(&line), line.call), ("end: GET /".into(), Some(call(1))));
}

#[tokio::test]
async fn following_ends_with_the_function_or_the_store() {
    let lab = Lab::new();
    let mut follower = lab.store.follow(&function("hello"));
    lab.store.remove(&function("hello")).expect("removed");
    assert_eq!(follower.next().await, None);

    let mut follower = lab.store.follow(&function("hello"));
    lab.function("hello").call(call(1)).end(end("/"));
    lab.store.shutdown();
    assert_eq!(text(&follower.next().await.expect("the last line")), "end: GET /");
    assert_eq!(follower.next().await, None);
}

#[tokio::test]
async fn a_slow_follower_is_told_how_much_it_missed() {
    let lab = Lab::new();
    let mut follower = lab.store.follow(&function("hello"));
    for number in 0..3000 {
        lab.function("hello").call(call(number)).end(end(&format!("/{number}")));
        if number % 1000 == 0 {
            lab.store.flush().expect("written");
        }
    }
    lab.store.shutdown();
    let mut lines = Vec::new();
    while let Some(line) = follower.next().await {
        lines.push(text(&line));
    }
    let skipped = 3000 - (lines.len() - 1);
    assert!(skipped > 0);
    assert_eq!(
        lines[0],
        format!("note: {skipped} lines were skipped: they came too fast to be followed")
    );
    assert_eq!(lines.last().map(String::as_str), Some("end: GET /2999"));
    assert_eq!(lab.store.left_out(), 0, "all of them are in the files");
}

/// Writes lines slowly until somebody follows, and then many, but never so many that the follower
/// could be too far behind. Returns how many.
fn log_meanwhile(lab: &Lab, received: &AtomicU64) -> u64 {
    let mut left = 2000;
    let mut number = 0;
    while left > 0 {
        lab.function("hello").call(call(number)).end(end(&format!("/{number}")));
        number += 1;
        if received.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        left -= 1;
        while received.load(Ordering::Relaxed) + 500 < number {
            std::thread::yield_now();
        }
    }
    number
}

#[test]
fn reading_and_following_has_no_line_twice_and_none_missing() {
    let (lab, received) = (Lab::new(), AtomicU64::new(0));
    let (texts, number) = std::thread::scope(|scope| {
        let logging = scope.spawn(|| log_meanwhile(&lab, &received));
        eventually("something is written", || !lab.read("hello", ALL).is_empty());
        let hello = function("hello");
        let (lines, mut follower) = lab.store.read_and_follow(&hello, ALL).expect("read");
        let mut texts: Vec<_> = lines.iter().map(text).collect();
        received.store(u64::try_from(texts.len()).expect("few"), Ordering::Relaxed);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let number = runtime.block_on(async {
            while !logging.is_finished() {
                let next = tokio::time::timeout(Duration::from_millis(50), follower.next());
                if let Ok(Some(line)) = next.await {
                    texts.push(text(&line));
                    received.fetch_add(1, Ordering::Relaxed);
                }
            }
            lab.store.shutdown();
            while let Some(line) = follower.next().await {
                texts.push(text(&line));
            }
            logging.join().expect("logged")
        });
        (texts, number)
    });
    let expected: Vec<_> = (0..number).map(|number| format!("end: GET /{number}")).collect();
    assert_eq!(texts.len(), expected.len());
    assert!(texts == expected, "in order, too");
}

#[test]
fn what_is_followed_is_not_read_as_well() {
    let limits = LogLimits { index_every: Duration::from_secs(3600), ..LogLimits::default() };
    let lab = Lab::with(limits);
    let log = |path| lab.function("hello").call(call(1)).end(end(path));
    log("/before");
    lab.store.flush().expect("written");
    lab.catalog.shut();
    std::thread::scope(|scope| {
        let hello = function("hello");
        let reading = scope.spawn(|| lab.store.read_and_follow(&function("hello"), ALL));
        // It follows by now, and has not read yet.
        eventually("it asks the index", || lab.catalog.waiting() == 1);
        log("/after");
        lab.store.flush().expect("written");
        lab.catalog.open();
        let (lines, mut follower) = reading.join().expect("no panic").expect("read");
        assert_eq!(lines.iter().map(text).collect::<Vec<_>>(), ["end: GET /before"]);
        lab.store.remove(&hello).expect("removed");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let line = runtime.block_on(follower.next()).expect("a line");
        assert_eq!(text(&line), "end: GET /after");
        assert_eq!(runtime.block_on(follower.next()), None);
    });
}
