//! One instance, from launch to end.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use adapter::{Adapter, AdapterError};
use model::{Exit, ExitStatus, InstanceId, LaunchSpec, Limits, RuntimeName};
use protocol::{BindError, CallLog, ConnectError, Connection, LogStream, Pace, Protocol};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{Notify, futures::Notified, watch},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Where the output of an instance's processes goes that belongs to no call. Must bear a flood.
pub type Outputs = Arc<dyn Fn(&InstanceId) -> Arc<dyn CallLog> + Send + Sync>;

/// How long an instance that has lost its connection may take to end by itself, so that its own
/// exit status is what is reported.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What instances are made with: where they run, how they are spoken to.
#[derive(Clone)]
pub struct Engine {
    adapter: Arc<dyn Adapter>,
    protocol: Arc<dyn Protocol>,
    outputs: Outputs,
    launched: Arc<AtomicU64>,
    ended: Arc<Notify>,
    tasks: TaskTracker,
}

/// What all instances of a runtime have in common.
#[derive(Clone, Debug)]
pub struct Template {
    /// The runtime, as people and metrics name it.
    pub runtime: RuntimeName,
    /// A launch specification; each instance gets an id of its own that begins with this one's.
    pub spec: LaunchSpec,
    /// How long a launched instance may take until it can be bound.
    pub ready_timeout: Duration,
}

/// Why there is no instance.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The adapter could not start it.
    #[error("could not launch an instance")]
    Adapter(#[from] AdapterError),
    /// It started and could not be spoken to.
    #[error("could not reach a launched instance")]
    Connect(#[from] ConnectError),
    /// It started and did not say anything.
    #[error("a launched instance was not ready within {0:?}")]
    NotReady(Duration),
}

/// Why an instance does not serve its function.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("could not attach the function's code")]
    Attach(#[source] AdapterError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the instance {0} while it loaded the function")]
    Ended(Exit),
    #[error("it did not start within {0:?}")]
    TimedOut(Duration),
}

/// An instance that runs. Dropping it stops it.
pub(crate) struct Running {
    pub(crate) id: InstanceId,
    pub(crate) connection: Arc<dyn Connection>,
    pub(crate) since: Instant,
    exit: watch::Receiver<Option<Exit>>,
    stop: watch::Sender<Option<Duration>>,
}

impl Engine {
    /// An engine from its two halves. Must be made within a tokio runtime.
    pub fn new(adapter: Arc<dyn Adapter>, protocol: Arc<dyn Protocol>, outputs: Outputs) -> Self {
        let (launched, ended, tasks) = (Arc::default(), Arc::default(), TaskTracker::new());
        Self { adapter, protocol, outputs, launched, ended, tasks }
    }

    /// Where instances run.
    pub fn adapter(&self) -> &Arc<dyn Adapter> {
        &self.adapter
    }

    /// Returns when every instance that was launched is gone and released.
    pub async fn until_empty(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    /// Returns when some instance has ended since the future was made.
    pub(crate) fn some_end(&self) -> Notified<'_> {
        self.ended.notified()
    }

    /// Launches an instance and waits until it can be bound. Dropping the future stops it.
    pub(crate) async fn launch(&self, template: &Template) -> Result<Running, LaunchError> {
        let mut spec = template.spec.clone();
        let serial = self.launched.fetch_add(1, Ordering::Relaxed);
        spec.id = format!("{}-{serial}", spec.id).parse().expect("an id and a number are an id");
        let connection = self.protocol.prepare(&mut spec)?;
        let output = self.open_output(&spec.id);
        let launching = Launching { engine: self, id: &spec.id, is_over: false };
        launching.over(self.adapter.launch(&spec, output).await)?;
        let running = self.supervise(spec.id, connection);
        timeout(template.ready_timeout, running.connection.ready())
            .await
            .map_err(|_| LaunchError::NotReady(template.ready_timeout))??;
        Ok(running)
    }

    /// Gives an instance its function's code, and says where it is inside.
    pub(crate) async fn attach(
        &self,
        running: &Running,
        artifact: &Path,
        limits: &Limits,
    ) -> Result<PathBuf, StartError> {
        match self.adapter.attaching() {
            Some(attaching) => {
                attaching.attach(&running.id, artifact, limits).await.map_err(StartError::Attach)
            }
            None => Ok(PathBuf::from(model::paths::FUNCTION)),
        }
    }

    fn supervise(&self, id: InstanceId, connection: Arc<dyn Connection>) -> Running {
        let (ended, exit) = watch::channel(None);
        let (stop, stopped) = watch::channel(None);
        let adapter = self.adapter.clone();
        let supervised = Supervised { adapter, id: id.clone(), connection: connection.clone() };
        let somebody_ended = self.ended.clone();
        self.tasks.spawn(async move {
            supervised.until_gone(ended, stopped).await;
            somebody_ended.notify_waiters();
        });
        Running { id, connection, since: Instant::now(), exit, stop }
    }

    /// A pipe for what the instance's processes print, and a task that reads it.
    fn open_output(&self, id: &InstanceId) -> Option<OwnedFd> {
        let log = (self.outputs)(id);
        let opened = std::io::pipe().and_then(|(reading, writing)| {
            Ok((pipe::Receiver::from_owned_fd(reading.into())?, OwnedFd::from(writing)))
        });
        match opened {
            Ok((reading, writing)) => {
                self.tasks.spawn(copy_output(reading, log));
                Some(writing)
            }
            Err(error) => {
                warn!(instance = %id, %error, "no pipe for an instance's output");
                None
            }
        }
    }
}

/// A launch that may be given up half-way: then nobody else knows of the instance.
struct Launching<'a> {
    engine: &'a Engine,
    id: &'a InstanceId,
    is_over: bool,
}

impl Launching<'_> {
    fn over<T>(mut self, outcome: T) -> T {
        self.is_over = true;
        outcome
    }
}

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let (adapter, id) = (self.engine.adapter.clone(), self.id.clone());
        self.engine.tasks.spawn(async move {
            if let Err(error) = adapter.stop(&id, Duration::ZERO).await {
                warn!(instance = %id, %error, "could not stop a launch that was given up");
            }
        });
    }
}

/// Reads until the instance is gone, also what nobody wants: a full pipe would stop the instance.
/// One that writes faster than its share does wait.
async fn copy_output(mut pipe: pipe::Receiver, log: Arc<dyn CallLog>) {
    let mut buffer = [0; 4096];
    let mut pace = Pace::new(Instant::now());
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        log.write(LogStream::NativeOut, &String::from_utf8_lossy(&buffer[..read]));
        pace.keep(Pace::ENTRY + read).await;
    }
}

/// What the supervisor of an instance holds.
struct Supervised {
    adapter: Arc<dyn Adapter>,
    id: InstanceId,
    connection: Arc<dyn Connection>,
}

impl Supervised {
    /// Waits until the instance ends or should end, and releases it.
    async fn until_gone(
        self,
        ended: watch::Sender<Option<Exit>>,
        mut stopped: watch::Receiver<Option<Duration>>,
    ) {
        let Self { adapter, id, connection } = self;
        let grace = tokio::select! {
            _ = adapter.wait(&id) => Duration::ZERO,
            _ = connection.closed() => {
                let _ = timeout(LAST_WORDS, adapter.wait(&id)).await;
                Duration::ZERO
            }
            // Also if the instance is dropped: its sender goes with it.
            grace = asked_to_stop(&mut stopped) => grace,
        };
        if !grace.is_zero() {
            let _ = timeout(grace, connection.drain()).await;
        }
        let (exit, stop) = tokio::join!(adapter.wait(&id), adapter.stop(&id, Duration::ZERO));
        debug!(instance = %id, ?exit, "an instance is gone");
        if let Err(error) = stop {
            warn!(instance = %id, %error, "could not release an instance");
        }
        let lost = Exit { status: ExitStatus::Unknown, out_of_memory: false };
        ended.send_replace(Some(exit.unwrap_or(lost)));
    }
}

/// Returns how much grace the instance is given, once it should end.
async fn asked_to_stop(stopped: &mut watch::Receiver<Option<Duration>>) -> Duration {
    let grace = stopped.wait_for(Option::is_some).await;
    grace.ok().and_then(|grace| *grace).unwrap_or_default()
}

impl Running {
    /// Lets the instance finish what it runs, for at most `grace`, and stops it. Does not wait.
    pub(crate) fn retire(&self, grace: Duration) {
        self.stop.send_replace(Some(grace));
    }

    /// Returns when the instance is gone and released, with how it ended.
    pub(crate) async fn gone(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        ended.unwrap_or(Exit { status: ExitStatus::Unknown, out_of_memory: false })
    }

    /// Whether the instance is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// How the instance ended, if it does so soon and not because we killed it: then the reason
    /// for that is more telling.
    pub(crate) async fn own_end(&self) -> Option<Exit> {
        let mut exit = self.exit.clone();
        let ended = timeout(2 * LAST_WORDS, exit.wait_for(Option::is_some)).await;
        ended.ok()?.ok().and_then(|exit| *exit).filter(|exit| !is_ours(*exit))
    }
}

/// Whether an instance ended because we killed it.
fn is_ours(exit: Exit) -> bool {
    !exit.out_of_memory && matches!(exit.status, ExitStatus::Signal(9) | ExitStatus::Unknown)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Mutex};

    use super::*;

    struct Written(Mutex<usize>);

    impl CallLog for Written {
        fn write(&self, _: LogStream, text: &str) {
            *self.0.lock().expect("no panic") += text.len();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn output_is_read_no_faster_than_its_share_and_to_its_end() {
        const BYTES: usize = 16 << 20;
        let (reading, mut writing) = std::io::pipe().expect("a pipe");
        let reading = pipe::Receiver::from_owned_fd(reading.into()).expect("a pipe");
        let writer = std::thread::spawn(move || writing.write_all(&vec![b'\n'; BYTES]));
        let (begun, log) = (Instant::now(), Arc::new(Written(Mutex::new(0))));
        copy_output(reading, log.clone()).await;
        writer.join().expect("no panic").expect("all of it was read");
        assert_eq!(*log.0.lock().expect("no panic"), BYTES);
        // Four of the sixteen are free, two more each second.
        let took = begun.elapsed();
        assert!(took > Duration::from_secs(5), "{took:?}");
    }
}
