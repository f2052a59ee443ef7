use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard},
};

use model::{CallId, FunctionName, InstanceId, LogEvent, LogLine};
use protocol::CallLog;
use tokio::sync::broadcast;

use crate::{CallRecord, instance::InstanceLog, store::Shared};

/// A function with less than this waiting may use what is left when others have filled the rest.
const NEXT_TO_NOTHING: usize = 16 << 10;

/// The log of one function, for writing.
pub struct FunctionLog {
    name: FunctionName,
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
}

/// Lines on their way to the writer.
#[derive(Default)]
struct Queue {
    lines: Vec<LogLine>,
    /// Bytes of those, and of those that are being written at the moment.
    waiting: usize,
    /// Lines that were left out, of which the log does not say so yet.
    left_out: usize,
    /// Whether the writer knows that there is something.
    is_listed: bool,
    /// What is written from then on goes nowhere: the function is gone.
    is_removed: bool,
    followers: Option<broadcast::Sender<Arc<LogLine>>>,
}

/// What the writer takes at a time.
pub(crate) struct Batch {
    pub(crate) lines: Vec<LogLine>,
    /// Lines that were left out after these.
    pub(crate) left_out: usize,
    pub(crate) followers: Option<broadcast::Sender<Arc<LogLine>>>,
    bytes: usize,
}

impl FunctionLog {
    pub(crate) fn new(name: FunctionName, shared: Arc<Shared>) -> Self {
        Self { name, shared, queue: Mutex::default() }
    }

    pub(crate) fn name(&self) -> &FunctionName {
        &self.name
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The record of a call that begins.
    pub fn call(self: &Arc<Self>, id: CallId) -> Arc<CallRecord> {
        Arc::new(CallRecord::new(self.clone(), id))
    }

    /// Where an instance's output goes that belongs to no call.
    pub fn instance(self: &Arc<Self>, id: &InstanceId) -> Arc<dyn CallLog> {
        Arc::new(InstanceLog::new(self.clone(), id.clone()))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while the lock is held")
    }

    /// Queues lines of one call, or of none. Never waits for the disk.
    pub(crate) fn push(
        self: &Arc<Self>,
        call: Option<CallId>,
        events: impl IntoIterator<Item = LogEvent>,
    ) {
        let mut queue = self.queue();
        if queue.is_removed {
            return;
        }
        let at = (self.shared.clock)();
        for event in events {
            let bytes = cost(&event);
            if self.has_room(&queue, bytes, matches!(event, LogEvent::End(_))) {
                queue.waiting += bytes;
                self.shared.waiting.add(bytes);
                queue.lines.push(LogLine { at, call, event });
            } else {
                queue.left_out += 1;
                self.shared.left_out.add(1);
            }
        }
        let is_first = !mem::replace(&mut queue.is_listed, true);
        drop(queue);
        if is_first {
            self.shared.list(self.clone());
        }
    }

    fn has_room(&self, queue: &Queue, bytes: usize, is_end: bool) -> bool {
        let limits = &self.shared.limits;
        let (own, all) = (limits.waiting_per_function_bytes, limits.waiting_bytes);
        let own = if is_end { own } else { own - own / 4 };
        let is_small = queue.waiting + bytes <= NEXT_TO_NOTHING;
        let all = if is_end || is_small { all } else { all - all / 8 };
        queue.waiting + bytes <= own && self.shared.waiting.get() + bytes <= all
    }

    /// What has gathered since the last time.
    pub(crate) fn take(&self) -> Batch {
        let mut queue = self.queue();
        queue.is_listed = false;
        if queue.followers.as_ref().is_some_and(|followers| followers.receiver_count() == 0) {
            queue.followers = None;
        }
        let lines = mem::take(&mut queue.lines);
        Batch {
            bytes: lines.iter().map(|line| cost(&line.event)).sum(),
            lines,
            left_out: mem::take(&mut queue.left_out),
            followers: queue.followers.clone(),
        }
    }

    /// A batch is no longer on its way. Of its lines, `lost` could not be written, and `unsaid`
    /// others were left out of which the log could not say so.
    pub(crate) fn done(&self, batch: &Batch, lost: usize, unsaid: usize) {
        let mut queue = self.queue();
        queue.waiting -= batch.bytes;
        self.shared.waiting.sub(batch.bytes);
        self.shared.left_out.add(lost);
        queue.left_out += lost + unsaid;
    }

    pub(crate) fn follow(&self) -> broadcast::Receiver<Arc<LogLine>> {
        let mut queue = self.queue();
        let make = || broadcast::channel(crate::follow::MOST_BEHIND).0;
        let followers = queue.followers.get_or_insert_with(make);
        followers.subscribe()
    }

    /// Lets followers know that nothing comes any more.
    pub(crate) fn stop_following(&self) {
        self.queue().followers = None;
    }

    /// Forgets what waits, and takes nothing from now on.
    pub(crate) fn remove(&self) {
        let mut queue = self.queue();
        queue.is_removed = true;
        queue.followers = None;
        let waiting: usize = queue.lines.drain(..).map(|line| cost(&line.event)).sum();
        queue.waiting -= waiting;
        self.shared.waiting.sub(waiting);
    }
}

/// About how much memory a line takes.
fn cost(event: &LogEvent) -> usize {
    let text = match event {
        LogEvent::Entry { text, .. } | LogEvent::Note { text } => text.len(),
        LogEvent::End(end) => {
            let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
            end.method.len() + end.path.len() + optional(&end.instance) + optional(&end.error)
        }
    };
    size_of::<LogLine>() + text
}
