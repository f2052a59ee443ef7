//! Where the daemon's own words go. Nobody who says something waits for it, or fails because of it.
//!
//! ```text
//! warn!(…) ─┐
//! say(…) ───┴─► queue (1 MiB) ─► thread `log` ─► standard error
//! ```
//!
//! A pipe that nobody reads blocks the thread, a closed pipe or a full disk makes its writes fail,
//! and in each case the daemon goes on. What did not fit, or could not be written, is counted, and
//! the number is said when writing works again.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    mem,
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

/// Bytes that wait to be written. Thousands of lines: a terminal that somebody has stopped for a
/// moment loses nothing.
const QUEUE_BYTES: usize = 1 << 20;
/// How long the end of the program waits for what is still to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

static STANDARD_ERROR: OnceLock<Lines> = OnceLock::new();

/// Writes to standard error, after what has been said before, and forgets what cannot be written.
/// It does not wait, and does not fail. In a program without a thread for it, it writes directly.
pub fn say(text: impl AsRef<[u8]>) {
    match STANDARD_ERROR.get() {
        Some(lines) => lines.push(text.as_ref()),
        None => _ = io::stderr().write_all(text.as_ref()),
    }
}

/// Has all that is said from now on written by a thread of its own. Without a thread, or without a
/// standard error, things stay as they are.
pub(crate) fn start_queue() {
    if STANDARD_ERROR.get().is_some() {
        return;
    }
    // A copy, so that a write that blocks does not hold the lock of `io::stderr`, which whoever
    // panics needs.
    let Ok(copy) = io::stderr().as_fd().try_clone_to_owned() else { return };
    if let Ok(lines) = Lines::start(File::from(copy), QUEUE_BYTES) {
        let _ = STANDARD_ERROR.set(lines);
    }
}

/// Waits until all that was said is written, a second at most. For the end of the program.
pub fn finish_logging() {
    if let Some(lines) = STANDARD_ERROR.get() {
        lines.finish(LAST_WORDS);
    }
}

/// For the log's formatter: an event is one `write`.
pub(crate) struct Events;

impl Write for Events {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        say(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A queue of lines, and the thread that writes them.
#[derive(Clone)]
struct Lines(Arc<Shared>);

struct Shared {
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    /// Of all that waits.
    bytes: usize,
    /// Whether something is being written at the moment.
    is_busy: bool,
    /// How many were left out since that was said last.
    left_out: u64,
}

impl Lines {
    fn start(mut out: impl Write + Send + 'static, limit: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared { limit, state: Mutex::default(), changed: Condvar::new() });
        let lines = Self(shared.clone());
        std::thread::Builder::new().name("log".into()).spawn(move || {
            loop {
                let (batch, left_out) = shared.next();
                let lost = write_all(&mut out, &batch, left_out);
                shared.done(lost);
            }
        })?;
        Ok(lines)
    }

    fn push(&self, text: &[u8]) {
        let mut state = self.0.lock();
        if state.bytes + text.len() > self.0.limit {
            state.left_out += 1;
            return;
        }
        state.bytes += text.len();
        state.waiting.push_back(text.to_vec());
        drop(state);
        self.0.changed.notify_all();
    }

    fn finish(&self, most: Duration) {
        let state = self.0.lock();
        let is_working = |state: &mut State| state.is_busy || !state.waiting.is_empty();
        drop(self.0.changed.wait_timeout_while(state, most, is_working));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here leaves it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to write.
    fn next(&self) -> (VecDeque<Vec<u8>>, u64) {
        let state = self.lock();
        let is_idle = |state: &mut State| state.waiting.is_empty();
        let waited = self.changed.wait_while(state, is_idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_busy = true;
        state.bytes = 0;
        (mem::take(&mut state.waiting), mem::take(&mut state.left_out))
    }

    fn done(&self, lost: u64) {
        let mut state = self.lock();
        state.is_busy = false;
        state.left_out += lost;
        drop(state);
        self.changed.notify_all();
    }
}

/// Writes what it can, in order. How many lines are still to be told as left out.
fn write_all(out: &mut impl Write, batch: &VecDeque<Vec<u8>>, left_out: u64) -> u64 {
    let all = batch.len() as u64;
    if left_out > 0 {
        let note = format!("({left_out} lines of the log were left out: nobody took them)\n");
        if out.write_all(note.as_bytes()).is_err() {
            return left_out + all;
        }
    }
    (0..)
        .zip(batch)
        .find(|(_, text)| out.write_all(text).is_err())
        .map_or(0, |(done, _)| all - done)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, sync::mpsc};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn whoever_logs_does_not_wait_for_a_reader() {
        let (mut reading, writing) = io::pipe().expect("a pipe");
        let lines = Lines::start(writing, 256 << 10).expect("a thread");
        // More than the pipe and the queue hold, and nobody reads.
        for number in 0..40_000 {
            lines.push(format!("line {number}\n").as_bytes());
        }
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let mut buffer = [0; 4096];
            while !text.contains("the end\n") {
                let read = reading.read(&mut buffer).expect("the writer lives");
                text.push_str(std::str::from_utf8(&buffer[..read]).expect("plain"));
            }
            text
        });
        lines.finish(LONG);
        lines.push(b"the end\n");
        let text = reader.join().expect("read");
        assert!(text.starts_with("line 0\nline 1\n"), "what fits comes in order");
        assert!(text.contains("lines of the log were left out"), "and the rest is told");
    }

    /// Fails as long as it is told to.
    struct Sometimes(mpsc::Receiver<bool>, mpsc::Sender<Vec<u8>>);

    impl Write for Sometimes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.recv() {
                Ok(true) => {
                    self.1.send(bytes.to_vec()).expect("the test listens");
                    Ok(bytes.len())
                }
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_could_not_be_written_is_counted() {
        let (allow, allowed) = mpsc::channel();
        let (written, seen) = mpsc::channel();
        let lines = Lines::start(Sometimes(allowed, written), 1 << 10).expect("a thread");
        for _ in 0..2 {
            lines.push(b"lost\n");
            allow.send(false).expect("it writes");
            lines.finish(LONG);
        }
        allow.send(true).expect("it writes");
        allow.send(true).expect("it writes");
        lines.push(b"kept\n");
        let note = seen.recv_timeout(LONG).expect("a note");
        assert!(note.starts_with(b"(2 lines"), "{}", String::from_utf8_lossy(&note));
        assert_eq!(seen.recv_timeout(LONG).expect("the line"), b"kept\n");
    }
}
