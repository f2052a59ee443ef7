use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard},
};

use model::{CallEnd, CallId, LogEvent, LogSource};
use protocol::{CallLog, LogStream};

use crate::{
    FunctionLog,
    split::{Unfinished, fitting, pieces, stored_bytes},
};

/// What one call writes, and how it ends. Costs about two hundred bytes while the call runs.
pub struct CallRecord {
    function: Arc<FunctionLog>,
    id: CallId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    output: Output,
    /// Bytes in the file so far, about.
    used: usize,
    /// Bytes beyond what a call may write, of which the log does not say so yet.
    left_out: usize,
}

/// Makes lines of what is written. The last ones of native output may not have ended yet.
#[derive(Default)]
pub(crate) struct Output {
    stdout: Unfinished,
    stderr: Unfinished,
}

impl Output {
    /// The lines that are complete once this was written, too.
    pub(crate) fn add(&mut self, stream: LogStream, text: &str) -> Vec<LogEvent> {
        let mut events = Vec::new();
        match stream {
            LogStream::Log => pieces(text, |text| events.push(entry(LogSource::Log, text))),
            LogStream::Error => pieces(text, |text| events.push(entry(LogSource::Error, text))),
            LogStream::NativeOut => {
                self.stdout.add(text, |text| events.push(entry(LogSource::Stdout, text)));
            }
            LogStream::NativeErr => {
                self.stderr.add(text, |text| events.push(entry(LogSource::Stderr, text)));
            }
        }
        events
    }

    /// The lines that have not ended.
    pub(crate) fn finish(&mut self) -> Vec<LogEvent> {
        let mut events = Vec::new();
        self.stdout.finish(|text| events.push(entry(LogSource::Stdout, text)));
        self.stderr.finish(|text| events.push(entry(LogSource::Stderr, text)));
        events
    }
}

fn entry(stream: LogSource, text: &str) -> LogEvent {
    LogEvent::Entry { stream, text: text.into() }
}

impl CallRecord {
    pub(crate) fn new(function: Arc<FunctionLog>, id: CallId) -> Self {
        Self { function, id, state: Mutex::default() }
    }

    /// The call is over. What the function writes afterwards still belongs to it.
    pub fn end(&self, end: CallEnd) {
        let mut events = self.rest();
        if events.is_empty() {
            return self.function.push(Some(self.id), [LogEvent::End(end)]);
        }
        events.push(LogEvent::End(end));
        self.function.push(Some(self.id), events);
    }

    /// What is to be said at the end.
    fn rest(&self) -> Vec<LogEvent> {
        let mut state = self.state();
        let mut events = state.output.finish();
        let left_out = mem::take(&mut state.left_out);
        if left_out > 0 {
            let limit = self.function.shared().limits.per_call_bytes;
            let text = format!("{left_out} bytes were left out: a call may log {limit} bytes");
            events.push(LogEvent::Note { text });
        }
        events
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

impl CallLog for CallRecord {
    fn write(&self, stream: LogStream, text: &str) {
        let limit = self.function.shared().limits.per_call_bytes;
        let mut state = self.state();
        let room = limit.saturating_sub(state.used);
        if room == 0 {
            // An empty entry counts, too, or nothing would be said of a million of them.
            state.left_out += text.len().max(1);
            return;
        }
        // Before lines are made of it: a text of a megabyte may have a million of them.
        let kept = fitting(text, room);
        state.left_out += text.len() - kept.len();
        if kept.is_empty() && !text.is_empty() {
            return;
        }
        state.used += stored_bytes(kept);
        let events = state.output.add(stream, kept);
        if !events.is_empty() {
            self.function.push(Some(self.id), events);
        }
    }
}

/// A call that was given up has its last lines, too.
impl Drop for CallRecord {
    fn drop(&mut self) {
        let events = self.rest();
        if !events.is_empty() {
            self.function.push(Some(self.id), events);
        }
    }
}
