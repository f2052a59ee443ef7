use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, Weak},
};

use model::InstanceId;
use protocol::{CallLog, LogStream};
use tracing::debug;

/// Connects what instances write outside of calls with the log of their function.
///
/// An instance is launched before anybody knows whose it will be; until it is connected, what it
/// writes goes to the daemon's own log, at the level for debugging.
#[derive(Clone, Default)]
pub struct Switchboard(Arc<Mutex<HashMap<InstanceId, Weak<Line>>>>);

struct Line {
    id: InstanceId,
    log: OnceLock<Arc<dyn CallLog>>,
    board: Switchboard,
}

impl Switchboard {
    /// Where an instance writes. All who ask for the same one get the same.
    pub fn line(&self, id: &InstanceId) -> Arc<dyn CallLog> {
        let mut lines = self.lock();
        if let Some(line) = lines.get(id).and_then(Weak::upgrade) {
            return line;
        }
        let line = Line { id: id.clone(), log: OnceLock::new(), board: self.clone() };
        let line = Arc::new(line);
        lines.insert(id.clone(), Arc::downgrade(&line));
        line
    }

    /// Connects an instance with a log, for good.
    pub(crate) fn connect(&self, id: &InstanceId, log: Arc<dyn CallLog>) {
        let line = self.lock().get(id).and_then(Weak::upgrade);
        if let Some(line) = line {
            // An instance is bound once.
            let _ = line.log.set(log);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Weak<Line>>> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

impl CallLog for Line {
    fn write(&self, stream: LogStream, text: &str) {
        match self.log.get() {
            Some(log) => log.write(stream, text),
            None => debug!(instance = %self.id, text = text.trim_end(), "a spare wrote"),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.board.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<String>);

    impl CallLog for Kept {
        fn write(&self, _: LogStream, text: &str) {
            self.0.lock().expect("lock").push_str(text);
        }
    }

    #[test]
    fn an_instance_writes_to_its_functions_log_once_it_has_one() {
        let board = Switchboard::default();
        let id: InstanceId = "node-1".parse().expect("an id");
        let (line, same) = (board.line(&id), board.line(&id));
        line.write(LogStream::NativeOut, "lost");
        let (own, others) = (Arc::new(Kept::default()), Arc::new(Kept::default()));
        board.connect(&id, own.clone());
        board.connect(&id, others.clone());
        same.write(LogStream::NativeOut, "kept");
        assert_eq!(*own.0.lock().expect("lock"), "kept");
        assert_eq!(*others.0.lock().expect("lock"), "", "once");
        drop((line, same));
        assert!(board.lock().is_empty(), "nothing is left of it");
    }
}
