//! What instances print outside of calls, for the person at the terminal.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use model::InstanceId;
use protocol::{CallLog, LogStream};

/// Prefixes each line with the instance it came from, on standard error.
pub(crate) struct InstanceOutput {
    id: InstanceId,
    /// A line that has not ended yet; never longer than `MAX_LINE`.
    unfinished: Mutex<String>,
}

const MAX_LINE: usize = 16 << 10;

/// The log of an instance.
pub(crate) fn of_instance(id: &InstanceId) -> Arc<dyn CallLog> {
    Arc::new(InstanceOutput { id: id.clone(), unfinished: Mutex::default() })
}

impl CallLog for InstanceOutput {
    fn write(&self, stream: LogStream, text: &str) {
        let mut unfinished = self.unfinished.lock().expect("no panic while the lock is held");
        unfinished.push_str(text);
        if matches!(stream, LogStream::Log | LogStream::Error) || unfinished.len() > MAX_LINE {
            unfinished.push('\n');
        }
        let Some(end) = unfinished.rfind('\n') else { return };
        let lines: String = unfinished.drain(..=end).collect();
        let mut out = std::io::stderr().lock();
        for line in lines.lines() {
            // A closed terminal is no reason to stop serving.
            let _ = writeln!(out, "[{}] {line}", self.id);
        }
    }
}
