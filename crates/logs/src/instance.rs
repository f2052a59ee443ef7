use std::{
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use model::{InstanceId, LogEvent};
use protocol::{CallLog, LogStream};
use tokio::time::Instant;

use crate::{FunctionLog, call::Output, split::stored_bytes};

const PERIOD: Duration = Duration::from_secs(1);

/// What an instance writes outside of calls.
pub(crate) struct InstanceLog {
    function: Arc<FunctionLog>,
    id: InstanceId,
    state: Mutex<State>,
}

struct State {
    output: Output,
    allowance: Allowance,
}

/// How much more may be written in the current period.
struct Allowance {
    since: Instant,
    used: usize,
    /// Bytes that were too many, of which the log does not say so yet.
    left_out: usize,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { since: now, used: 0, left_out: 0 }
    }

    /// Whether a text may be written now that takes so many bytes in the file; if so, how many
    /// were left out before it.
    fn take(&mut self, bytes: usize, allowed: usize, now: Instant) -> Option<usize> {
        if now.duration_since(self.since) >= PERIOD {
            (self.since, self.used) = (now, 0);
        }
        if self.used + bytes > allowed {
            self.left_out += bytes;
            return None;
        }
        self.used += bytes;
        Some(mem::take(&mut self.left_out))
    }
}

impl InstanceLog {
    pub(crate) fn new(function: Arc<FunctionLog>, id: InstanceId) -> Self {
        let allowance = Allowance::new(Instant::now());
        Self { function, id, state: Mutex::new(State { output: Output::default(), allowance }) }
    }

    fn note(&self, left_out: usize) -> Option<LogEvent> {
        let id = &self.id;
        (left_out > 0).then(|| LogEvent::Note {
            text: format!(
                "about {left_out} bytes were left out: instance {id} wrote too much at once"
            ),
        })
    }
}

impl CallLog for InstanceLog {
    fn write(&self, stream: LogStream, text: &str) {
        let allowed = self.function.shared().limits.per_instance_second_bytes;
        let mut state = self.state.lock().expect("no panic while the lock is held");
        let bytes = stored_bytes(text);
        let Some(left_out) = state.allowance.take(bytes, allowed, Instant::now()) else { return };
        let lines = state.output.add(stream, text);
        let note = self.note(left_out);
        if note.is_some() || !lines.is_empty() {
            self.function.push(None, note.into_iter().chain(lines));
        }
    }
}

impl Drop for InstanceLog {
    fn drop(&mut self) {
        let state = self.state.get_mut().expect("no panic while the lock is held");
        let lines = state.output.finish();
        let left_out = state.allowance.left_out;
        let note = self.note(left_out);
        if note.is_some() || !lines.is_empty() {
            self.function.push(None, lines.into_iter().chain(note));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_left_out_and_said_to_be() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for (bytes, now, expected) in [
            (99, start, Some(0)),
            (1, start, Some(0)), // up to the limit
            (7, start, None),
            (5, start + PERIOD / 2, None),
            (1, start + PERIOD, Some(12)),
            (1, start + PERIOD, Some(0)), // said once
        ] {
            assert_eq!(allowance.take(bytes, 100, now), expected, "{bytes} at {now:?}");
        }
    }
}
