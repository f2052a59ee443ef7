//! What daemons and instances say to the person at the terminal.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use model::{InstanceId, Plain};
use protocol::{CallLog, LogStream};
use tokio::time::Instant;
use tracing::warn;

/// A line is broken here.
const MAX_LINE: usize = 16 << 10;
/// What an instance may print in a [`PERIOD`]; a flood beyond it is left out.
const ALLOWED: usize = 256 << 10;
const PERIOD: Duration = Duration::from_secs(1);

/// Prefixes each line with the instance it came from, on standard error.
struct InstanceOutput {
    id: InstanceId,
    state: Mutex<State>,
}

struct State {
    /// A line that has not ended yet.
    unfinished: String,
    allowance: Allowance,
}

/// How much more may be printed.
struct Allowance {
    since: Instant,
    used: usize,
    left_out: usize,
}

/// Writes to standard output that a daemon serves. If it is closed or full, the log says so, and the
/// daemon serves all the same.
pub(crate) fn announce(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        warn!(%error, "could not write to standard output that calls are accepted");
    }
}

/// The log of an instance.
pub(crate) fn of_instance(id: &InstanceId) -> Arc<dyn CallLog> {
    let allowance = Allowance { since: Instant::now(), used: 0, left_out: 0 };
    let state = Mutex::new(State { unfinished: String::new(), allowance });
    Arc::new(InstanceOutput { id: id.clone(), state })
}

impl CallLog for InstanceOutput {
    fn write(&self, stream: LogStream, text: &str) {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        match state.allowance.take(text.len(), Instant::now()) {
            Take::LeaveOut => return,
            Take::Print => {}
            Take::PrintAfter(left_out) => {
                self.print(&format!("({left_out} bytes of output were left out)\n"));
            }
        }
        state.unfinished.push_str(text);
        let is_entry = matches!(stream, LogStream::Log | LogStream::Error);
        if is_entry || state.unfinished.len() > MAX_LINE {
            state.unfinished.push('\n');
        }
        if let Some(end) = state.unfinished.rfind('\n') {
            let lines: String = state.unfinished.drain(..=end).collect();
            self.print(&lines);
        }
    }
}

impl InstanceOutput {
    fn print(&self, lines: &str) {
        for line in lines.lines() {
            eprintln!("[{}] {}", self.id, Plain(line));
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Take {
    Print,
    /// And say first that so many bytes were not.
    PrintAfter(usize),
    LeaveOut,
}

impl Allowance {
    fn take(&mut self, bytes: usize, now: Instant) -> Take {
        if now.duration_since(self.since) >= PERIOD {
            (self.since, self.used) = (now, 0);
        }
        if self.used + bytes > ALLOWED {
            self.left_out += bytes;
            return Take::LeaveOut;
        }
        self.used += bytes;
        match std::mem::take(&mut self.left_out) {
            0 => Take::Print,
            left_out => Take::PrintAfter(left_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_left_out_and_said_to_be() {
        let start = Instant::now();
        let mut allowance = Allowance { since: start, used: 0, left_out: 0 };
        assert_eq!(allowance.take(ALLOWED - 1, start), Take::Print);
        assert_eq!(allowance.take(1, start), Take::Print, "up to the limit");
        assert_eq!(allowance.take(7, start), Take::LeaveOut);
        assert_eq!(allowance.take(5, start + PERIOD / 2), Take::LeaveOut);
        assert_eq!(allowance.take(1, start + PERIOD), Take::PrintAfter(12));
        assert_eq!(allowance.take(1, start + PERIOD), Take::Print, "said once");
    }
}
