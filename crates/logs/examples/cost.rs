//! What logging costs whoever calls: `cargo run --release --package logs --example cost`.
//!
//! Only the caller's side is timed, while the writer works beside it; each line says how many lines
//! were left out, which should be none.

use std::{hint::black_box, sync::Arc, thread::sleep, time::Duration};

use catalog::SqliteCatalog;
use logs::{FunctionLog, LogLimits, LogStore};
use model::{CallEnd, CallId, Outcome};
use protocol::{CallLog, LogStream};
use tokio::time::Instant;

fn end() -> CallEnd {
    CallEnd {
        method: "GET".into(),
        path: "/some/path".into(),
        outcome: Outcome::Served,
        status: Some(200),
        instance: Some("hello-1".into()),
        error: None,
        phases: [0, 0, 0, 0, 0, 42, 0],
    }
}

/// Makes calls in bursts, and says what one takes.
fn measure(store: &LogStore, name: &str, burst: u32, pause: Duration, entries: usize) {
    let function = store.function(&"hello".parse().expect("a name"));
    let mut times = Vec::new();
    let rounds = if pause > Duration::from_secs(1) { 5 } else { 400 };
    let before = store.left_out();
    for _ in 0..rounds {
        let ends: Vec<_> = (0..burst).map(|_| (CallId(uuid::Uuid::now_v7()), end())).collect();
        let start = Instant::now();
        for (id, end) in ends {
            call(&function, id, end, entries);
        }
        times.push(start.elapsed() / burst);
        sleep(pause);
    }
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let left_out = store.left_out() - before;
    println!("{name}: {median:?} per call, 99 % of bursts {worst:?}; {left_out} lines left out");
}

fn call(function: &Arc<FunctionLog>, id: CallId, end: CallEnd, entries: usize) {
    let record = function.call(id);
    for _ in 0..entries {
        record.write(LogStream::Log, black_box("something happened in the function"));
    }
    record.end(end);
}

fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let catalog = Arc::new(SqliteCatalog::open(directory.path()).expect("a catalog"));
    let logs = directory.path().join("logs");
    let store = LogStore::open(&logs, LogLimits::default(), catalog).expect("a store");
    let ms = Duration::from_millis;
    measure(&store, "a call alone, after the writer fell asleep", 1, ms(1200), 0);
    measure(&store, "a call alone", 1, ms(20), 0);
    measure(&store, "10 000 calls/s", 50, ms(5), 0);
    measure(&store, "40 000 calls/s", 200, ms(5), 0);
    measure(&store, "40 000 calls/s, 1 entry each", 200, ms(5), 1);
    measure(&store, "10 000 calls/s, 10 entries each", 50, ms(5), 10);
}
