use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use catalog::Catalog;
use model::{CallId, FunctionName, LogLine};
use tokio::time::Instant;

use crate::{
    CallPart, Clock, Follower, FunctionLog, LogError, LogLimits, Query, files,
    read::{self, Position},
    writer::Writer,
};

/// How long the writer lets lines gather. Meanwhile callers need not wake it, which costs them some
/// 16 µs where a processor sleeps, and 0.2 µs is what they pay otherwise.
const GATHERING: Duration = Duration::from_millis(10);
/// For how many of these the writer stays awake though there is nothing to do.
const QUIET: u32 = 100;
/// How long a disk may keep the writer busy until others give up waiting for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The logs of all functions. There may be one for a directory at a time.
///
/// Its methods block for as long as the disk takes, except [`LogStore::function`],
/// [`LogStore::follow`] and [`LogStore::left_out`].
pub struct LogStore {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the store, its functions and its writer share.
pub(crate) struct Shared {
    pub(crate) root: PathBuf,
    pub(crate) limits: LogLimits,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) clock: Clock,
    /// Bytes of lines that are not written yet.
    pub(crate) waiting: Count,
    /// Lines that were left out so far.
    pub(crate) left_out: Count,
    functions: Mutex<HashMap<FunctionName, Arc<FunctionLog>>>,
    inbox: Mutex<Inbox>,
    bell: Condvar,
}

/// What the writer has to do.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Functions with something in their queues.
    pub(crate) functions: Vec<Arc<FunctionLog>>,
    pub(crate) orders: Vec<Order>,
    /// Whether the writer must be woken.
    is_parked: bool,
    /// Whether the writer ends, and takes nothing any more.
    is_closed: bool,
}

/// Something to be done once all that was queued before is written.
pub(crate) enum Order {
    Flush(SyncSender<()>),
    Follow(Arc<FunctionLog>, SyncSender<Result<Followed, LogError>>),
    Remove(FunctionName, SyncSender<Result<(), LogError>>),
    End(SyncSender<()>),
}

/// Lines from a position on.
pub(crate) type Followed = (Position, Follower);

#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn add(&self, number: usize) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, number: usize) {
        self.0.fetch_sub(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("no panic while the lock is held")
    }

    pub(crate) fn functions(&self) -> MutexGuard<'_, HashMap<FunctionName, Arc<FunctionLog>>> {
        self.functions.lock().expect("no panic while the lock is held")
    }

    /// Tells the writer that a function has something in its queue.
    pub(crate) fn list(&self, function: Arc<FunctionLog>) {
        let mut inbox = self.inbox();
        if inbox.is_closed {
            return;
        }
        inbox.functions.push(function);
        let is_parked = inbox.is_parked;
        drop(inbox);
        if is_parked {
            self.bell.notify_one();
        }
    }

    /// Waits until there is something to do, or until `due`.
    pub(crate) fn next(&self, due: Instant) -> Inbox {
        const SOUND: &str = "no panic while the lock is held";
        let idle = |inbox: &Inbox| inbox.functions.is_empty() && inbox.orders.is_empty();
        let mut inbox = self.inbox();
        for _ in 0..QUIET {
            let gathering = |inbox: &mut Inbox| inbox.orders.is_empty();
            (inbox, _) = self.bell.wait_timeout_while(inbox, GATHERING, gathering).expect(SOUND);
            if !idle(&inbox) || due <= Instant::now() {
                break;
            }
        }
        inbox.is_parked = true;
        let time = due.saturating_duration_since(Instant::now());
        (inbox, _) = self.bell.wait_timeout_while(inbox, time, |inbox| idle(inbox)).expect(SOUND);
        let is_closed = inbox.is_closed;
        std::mem::replace(&mut *inbox, Inbox { is_closed, ..Inbox::default() })
    }

    fn order(&self, order: Order) -> Result<(), LogError> {
        let mut inbox = self.inbox();
        if inbox.is_closed {
            return Err(LogError::Stalled);
        }
        inbox.is_closed = matches!(order, Order::End(_));
        inbox.orders.push(order);
        drop(inbox);
        self.bell.notify_one();
        Ok(())
    }
}

fn answer<T>(receiver: &Receiver<T>) -> Result<T, LogError> {
    receiver.recv_timeout(PATIENCE).map_err(|_| LogError::Stalled)
}

impl LogStore {
    /// Opens the logs in a directory; makes it if it is missing.
    pub fn open(
        directory: &Path,
        limits: LogLimits,
        catalog: Arc<dyn Catalog>,
    ) -> Result<Self, LogError> {
        let millis = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = move || u64::try_from(millis(SystemTime::now()).as_millis()).unwrap_or(0);
        Self::with_clock(directory, limits, catalog, Arc::new(clock))
    }

    /// Opens the logs, with a clock that tells when lines are written and when they are too old.
    pub fn with_clock(
        directory: &Path,
        limits: LogLimits,
        catalog: Arc<dyn Catalog>,
        clock: Clock,
    ) -> Result<Self, LogError> {
        let failed = |source| LogError::Files { step: "open", source };
        files::make_directory(directory).map_err(failed)?;
        let shared = Arc::new(Shared {
            root: directory.into(),
            limits,
            catalog,
            clock,
            waiting: Count::default(),
            left_out: Count::default(),
            functions: Mutex::default(),
            inbox: Mutex::default(),
            bell: Condvar::new(),
        });
        let writer = Writer::new(shared.clone()).map_err(failed)?;
        let thread = std::thread::Builder::new().name("logs".into());
        let thread = thread.spawn(move || writer.run()).map_err(failed)?;
        Ok(Self { shared, writer: Mutex::new(Some(thread)) })
    }

    /// The log of a function, for writing. Nothing is on disk until something is written.
    pub fn function(&self, name: &FunctionName) -> Arc<FunctionLog> {
        let mut functions = self.shared.functions();
        if let Some(function) = functions.get(name) {
            return function.clone();
        }
        let function = Arc::new(FunctionLog::new(name.clone(), self.shared.clone()));
        functions.insert(name.clone(), function.clone());
        function
    }

    /// Reads a function's log, with all that was written before.
    pub fn read(&self, function: &FunctionName, query: Query) -> Result<Vec<LogLine>, LogError> {
        self.flush()?;
        self.read_until(function, query, Position::END)
    }

    /// The newest `most` calls in a function's log whose ids begin or end like this, newest first.
    pub fn calls(
        &self,
        function: &FunctionName,
        part: &CallPart,
        most: usize,
    ) -> Result<Vec<CallId>, LogError> {
        self.flush()?;
        read::calls(&self.shared.root, function, part, most)
    }

    fn read_until(
        &self,
        function: &FunctionName,
        query: Query,
        until: Position,
    ) -> Result<Vec<LogLine>, LogError> {
        read::read(&self.shared.root, &*self.shared.catalog, function, query, until)
    }

    /// The lines of a function's log from now on.
    pub fn follow(&self, function: &FunctionName) -> Follower {
        let receiver = self.function(function).follow();
        Follower::new(receiver, self.shared.clock.clone())
    }

    /// Reads a function's log, and follows it from there: no line twice, and none missing.
    pub fn read_and_follow(
        &self,
        function: &FunctionName,
        query: Query,
    ) -> Result<(Vec<LogLine>, Follower), LogError> {
        let (reply, answered) = sync_channel(1);
        self.shared.order(Order::Follow(self.function(function), reply))?;
        let (until, follower) = answer(&answered)??;
        Ok((self.read_until(function, query, until)?, follower))
    }

    /// Removes a function's log, also what is not written yet. What is still written through the
    /// old [`FunctionLog`] afterwards goes nowhere.
    pub fn remove(&self, function: &FunctionName) -> Result<(), LogError> {
        if let Some(function) = self.shared.functions().remove(function) {
            function.remove();
        }
        let (reply, answered) = sync_channel(1);
        self.shared.order(Order::Remove(function.clone(), reply))?;
        answer(&answered)?
    }

    /// How many lines were left out so far, for whatever reason.
    pub fn left_out(&self) -> u64 {
        u64::try_from(self.shared.left_out.get()).unwrap_or(u64::MAX)
    }

    /// Returns when all that was written before is in files.
    pub fn flush(&self) -> Result<(), LogError> {
        let (reply, answered) = sync_channel(1);
        self.shared.order(Order::Flush(reply))?;
        answer(&answered)
    }

    /// Writes what is there, brings the index up to date, and ends. What is written afterwards goes
    /// nowhere; followers are told that nothing comes any more. Doing it twice changes nothing.
    pub fn shutdown(&self) {
        let (reply, answered) = sync_channel(1);
        let writer = self.writer.lock().expect("no panic while the lock is held").take();
        let is_ended = self.shared.order(Order::End(reply)).and_then(|()| answer(&answered));
        // A disk that does not answer does not keep the daemon from ending.
        if let (Ok(()), Some(writer)) = (is_ended, writer) {
            let _ = writer.join();
        }
        // They hold what is shared, which holds them.
        self.shared.functions().clear();
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        self.shutdown();
    }
}
