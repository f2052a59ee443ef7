use std::sync::Arc;

use model::{LogEvent, LogLine};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::Clock;

/// The most lines that a follower can be behind.
pub(crate) const MOST_BEHIND: usize = 1024;

/// The lines of a function's log, as they are written.
pub struct Follower {
    receiver: Receiver<Arc<LogLine>>,
    clock: Clock,
}

impl Follower {
    pub(crate) fn new(receiver: Receiver<Arc<LogLine>>, clock: Clock) -> Self {
        Self { receiver, clock }
    }

    /// The next line; none once the function or the store is gone. One who is slower than the
    /// function loses lines, and is told how many by a note. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<LogLine> {
        match self.receiver.recv().await {
            Ok(line) => Some(Arc::unwrap_or_clone(line)),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(lines)) => {
                let text = format!("{lines} lines were skipped: they came too fast to be followed");
                let event = LogEvent::Note { text };
                Some(LogLine { at: (self.clock)(), call: None, event })
            }
        }
    }
}
