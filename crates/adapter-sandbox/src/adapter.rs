//! The daemon's side: requests go out, events come in, and a small table says who waits for what.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use adapter::{Adapter, AdapterError, Attaching, Metering};
use async_trait::async_trait;
use model::{Exit, ExitStatus, Instance, InstanceId, LaunchSpec, Limits, Network, Usage, paths};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    fault::{Fault, Step},
    launcher::START,
    reach::Subnet,
    sys,
    wire::{self, Abilities, Event, Request, Settings, Status},
};

/// The name users choose the adapter by.
const NAME: &str = "sandbox";

/// How long a launcher may take to answer, on top of what the question itself may take. It takes
/// microseconds; one that is stopped, or held up in the kernel, does not answer.
const ANSWER: Duration = Duration::from_secs(20);

/// How long a launcher may take to begin: it removes what dead owners have left behind.
const BEGIN: Duration = Duration::from_secs(60);

/// How long a launcher that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Requests that may be on their way to the launcher. Who comes later waits.
const QUEUE: usize = 64;

/// How the adapter is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where launchers keep their locks and mount points, such as `/run/hearth`.
    pub state: PathBuf,
    /// The command that becomes the launcher: it must call [`crate::launcher_main`] at once.
    pub launcher: Vec<OsString>,
    /// The addresses of egress networks: an IPv4 network of 16 to 20 bits that nothing else uses.
    pub network_range: (Ipv4Addr, u8),
    /// How many finished networks are kept ready.
    pub network_stock: usize,
    /// How much of the host's memory instances leave alone, in bytes, but at most half of it. Unset,
    /// it is a tenth and at least 256 MiB.
    pub memory_reserve: Option<u64>,
    /// How long an instance that was killed may take to be gone. Then nobody waits for it any more:
    /// the kernel can keep a process for as long as a disk or a file server does not answer.
    pub end_patience: Duration,
    /// Whether it is only tried if instances work: the host's network then stays as it is, and
    /// instances have none of it.
    pub is_trial: bool,
    /// What instances with an egress network may reach although it is not public. Never the host's
    /// own addresses, nor other instances'.
    pub allowed_networks: Vec<Subnet>,
    /// TCP ports of this host whose connections over the loopback interface are not tracked, which
    /// makes them faster: the rules of egress networks have the kernel track all others. Has no
    /// effect where somebody translates what the host sends, since that needs the tracking.
    pub untracked_ports: Vec<u16>,
    /// The most flows that the host tracks for one instance with an egress network. If none is
    /// given, a 32nd of what the host can track.
    pub flows_per_instance: Option<u32>,
}

impl Config {
    /// The usual settings.
    pub fn new(state: PathBuf, launcher: Vec<OsString>) -> Self {
        Self {
            state,
            launcher,
            network_range: (Ipv4Addr::new(10, 199, 0, 0), 16),
            network_stock: 2,
            memory_reserve: None,
            end_patience: Duration::from_secs(10),
            is_trial: false,
            allowed_networks: Vec::new(),
            untracked_ports: Vec::new(),
            flows_per_instance: None,
        }
    }
}

/// Runs instances in Linux namespaces.
///
/// Dropping it removes everything, too, but nobody waits for that: use [`Self::shutdown`].
#[derive(Debug)]
pub struct SandboxAdapter {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Outgoing>,
    abilities: Abilities,
    next_request: AtomicU64,
    end_patience: Duration,
    connection: Arc<AsyncFd<OwnedFd>>,
    tasks: Tasks,
}

type Answer<T> = oneshot::Sender<Result<T, Fault>>;
type Outgoing = (Vec<u8>, Option<OwnedFd>);

#[derive(Debug)]
struct Tasks {
    writer: JoinHandle<()>,
    reader: tokio::sync::Mutex<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    /// The order to kill the launcher, since it does not answer.
    abandon: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Table {
    instances: HashMap<InstanceId, Entry>,
    attaching: HashMap<u64, Answer<()>>,
    measuring: HashMap<u64, Answer<Usage>>,
    generation: u64,
    /// Why nothing works any more.
    gone: Option<String>,
}

#[derive(Debug)]
struct Entry {
    /// Tells an instance from an earlier one of the same id.
    generation: u64,
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Debug)]
enum Phase {
    Launching,
    Failed(Fault),
    Running { pid: u32 },
    Ended { pid: u32, exit: Exit, is_released: bool },
}

impl SandboxAdapter {
    /// Starts the launcher, which first removes what owners that were killed left behind.
    pub async fn start(config: Config) -> Result<Self, AdapterError> {
        let (ours, theirs) = wire::pair().step("make a socket for the launcher")?;
        rustix::io::ioctl_fionbio(&ours, true).step("set up the launcher's socket")?;
        let launcher = spawn(&config.launcher, theirs)
            .map_err(|error| AdapterError::step("start the launcher", error))?;
        let connection = Arc::new(sys::watch(ours).step("listen to the launcher")?);
        let end_patience = config.end_patience;
        let settings = Settings {
            state: config.state,
            end_patience,
            is_trial: config.is_trial,
            network_range: config.network_range,
            network_stock: config.network_stock,
            memory_reserve: config.memory_reserve,
            allowed_networks: config.allowed_networks,
            untracked_ports: config.untracked_ports,
            flows_per_instance: config.flows_per_instance,
        };
        let bytes = wire::encode(&Request::Start(settings)).step("address the launcher")?;
        send(&connection, &(bytes, None)).await.step("address the launcher")?;
        let mut buffer = vec![0; wire::LONGEST];
        let begun = timeout(BEGIN, receive(&connection, &mut buffer)).await;
        let abilities = match begun.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Some(Event::Ready(abilities))) => abilities,
            Ok(Some(Event::Failed(fault))) => return Err(fault.into()),
            Ok(_) => return Err(gone("the launcher ended before it was ready")),
            Err(error) => return Err(AdapterError::step("hear from the launcher", error)),
        };
        let shared = Arc::new(Shared::default());
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = tokio::spawn(write(Arc::clone(&connection), Arc::clone(&shared), queue));
        let reader = tokio::spawn(read(Arc::clone(&connection), Arc::clone(&shared), launcher));
        Ok(Self {
            shared,
            requests,
            abilities,
            next_request: AtomicU64::new(0),
            end_patience,
            connection,
            tasks: Tasks { writer, reader: tokio::sync::Mutex::new(reader) },
        })
    }

    /// The guarantees that do not hold on this machine, in words for the operator.
    pub fn weaknesses(&self) -> Vec<String> {
        self.abilities.weaknesses.clone()
    }

    /// Why there is no egress network here, if there is none.
    pub fn no_egress(&self) -> Option<&str> {
        self.abilities.no_egress.as_deref()
    }

    /// What all instances together may use, in bytes, if something limits them together.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.abilities.memory_bytes
    }

    /// Whether the launcher has ended, and so everything.
    pub(crate) fn is_gone(&self) -> bool {
        self.shared.lock().gone.is_some()
    }

    /// Kills all instances and removes everything the adapter made. Returns when that is done, or
    /// when the launcher has had its time and was killed: the next start removes what is left then.
    pub async fn shutdown(&self) {
        // The launcher takes the end of its requests as the order to finish.
        let _ = rustix::net::shutdown(&*self.connection, rustix::net::Shutdown::Write);
        // Whoever asks a second time waits for the first.
        let mut reader = self.tasks.reader.lock().await;
        if reader.is_finished() {
            return;
        }
        if timeout(self.end_patience + ANSWER, &mut *reader).await.is_err() {
            self.shared.abandon.notify_one();
            let _ = (&mut *reader).await;
        }
    }

    /// Waits for what a launcher that answers does in this time, and some more. One that does not is
    /// killed: its instances end with it, and everybody who waits hears that it is gone.
    async fn answered<T>(
        &self,
        within: Duration,
        waiting: impl Future<Output = Result<T, AdapterError>>,
    ) -> Result<T, AdapterError> {
        let within = within.saturating_add(ANSWER);
        if let Ok(answer) = timeout(within, waiting).await {
            return answer;
        }
        let why = format!("its launcher did not answer for {} s", within.as_secs());
        self.shared.lock().end(why);
        self.shared.abandon.notify_one();
        Err(self.shared.lock().gone())
    }

    async fn reserve(&self) -> Result<mpsc::Permit<'_, Outgoing>, AdapterError> {
        self.requests.reserve().await.map_err(|_| self.shared.lock().gone())
    }

    fn watch(&self, id: &InstanceId) -> Result<(u64, watch::Receiver<Phase>), AdapterError> {
        let table = self.shared.lock();
        table.check()?;
        let entry = table.instances.get(id).ok_or_else(|| AdapterError::Unknown(id.clone()))?;
        Ok((entry.generation, entry.phase.subscribe()))
    }

    /// Waits for a phase. The table drops its senders only when the launcher is gone.
    async fn until(
        &self,
        phase: &mut watch::Receiver<Phase>,
        is_reached: impl Fn(&Phase) -> bool,
    ) -> Result<Phase, AdapterError> {
        let reached = phase.wait_for(|phase| is_reached(phase)).await.map(|phase| phase.clone());
        reached.map_err(|_| self.shared.lock().gone())
    }

    fn check_network(&self, network: Network) -> Result<(), AdapterError> {
        match (&self.abilities.no_egress, network) {
            (Some(why), Network::Egress) => {
                let instead = format!("{why}; use `none` or `host`");
                Err(AdapterError::no_network(NAME, network, &instead))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for SandboxAdapter {
    fn drop(&mut self) {
        // The launcher and the reader go on until the launcher has cleaned up.
        let _ = rustix::net::shutdown(&*self.connection, rustix::net::Shutdown::Write);
        self.tasks.writer.abort();
    }
}

#[async_trait]
impl Adapter for SandboxAdapter {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_isolating(&self) -> bool {
        true
    }

    async fn launch(
        &self,
        spec: &LaunchSpec,
        output: Option<OwnedFd>,
    ) -> Result<Instance, AdapterError> {
        self.check_network(spec.network)?;
        let request = Request::Launch(Box::new(spec.clone()));
        let bytes = wire::encode(&request).step("pass on the specification")?;
        let launched = async {
            let permit = self.reserve().await?;
            let mut phase = self.shared.lock().insert(&spec.id)?;
            permit.send((bytes, output));
            self.until(&mut phase, |phase| !matches!(phase, Phase::Launching)).await
        };
        match self.answered(START + self.end_patience, launched).await? {
            Phase::Failed(fault) => Err(fault.into()),
            phase => Ok(phase.instance(&spec.id)),
        }
    }

    async fn wait(&self, id: &InstanceId) -> Result<Exit, AdapterError> {
        let (_, mut phase) = self.watch(id)?;
        let is_over = |phase: &Phase| matches!(phase, Phase::Ended { .. } | Phase::Failed(_));
        match self.until(&mut phase, is_over).await? {
            Phase::Ended { exit, .. } => Ok(exit),
            Phase::Launching | Phase::Failed(_) | Phase::Running { .. } => {
                Err(AdapterError::Unknown(id.clone()))
            }
        }
    }

    async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), AdapterError> {
        let (generation, mut phase) = match self.watch(id) {
            Err(AdapterError::Unknown(_)) => return Ok(()),
            found => found?,
        };
        let stopped = async {
            if matches!(*phase.borrow(), Phase::Launching | Phase::Running { .. }) {
                let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                let request = Request::Stop { id: id.clone(), grace_millis };
                let bytes = wire::encode(&request).step("pass on the stop")?;
                self.reserve().await?.send((bytes, None));
            }
            let is_released = |phase: &Phase| {
                matches!(phase, Phase::Ended { is_released: true, .. } | Phase::Failed(_))
            };
            self.until(&mut phase, is_released).await
        };
        self.answered(grace.saturating_add(self.end_patience), stopped).await?;
        self.shared.lock().forget(id, generation);
        Ok(())
    }

    async fn recover(&self) -> Result<Vec<Instance>, AdapterError> {
        let table = self.shared.lock();
        table.check()?;
        Ok(table.instances.iter().map(|(id, entry)| entry.phase.borrow().instance(id)).collect())
    }

    fn attaching(&self) -> Option<&dyn Attaching> {
        Some(self)
    }

    fn metering(&self) -> Option<&dyn Metering> {
        Some(self)
    }
}

#[async_trait]
impl Metering for SandboxAdapter {
    async fn usage(&self, id: &InstanceId) -> Result<Usage, AdapterError> {
        self.watch(id)?;
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        let request = Request::Measure { request: number, id: id.clone() };
        let bytes = wire::encode(&request).step("pass on the question")?;
        let measured = async {
            let permit = self.reserve().await?;
            let (sender, answer) = oneshot::channel();
            self.shared.lock().measuring.insert(number, sender);
            permit.send((bytes, None));
            answer.await.map_err(|_| self.shared.lock().gone())
        };
        Ok(self.answered(Duration::ZERO, measured).await??)
    }
}

#[async_trait]
impl Attaching for SandboxAdapter {
    async fn attach(
        &self,
        id: &InstanceId,
        artifact: &Path,
        limits: &Limits,
    ) -> Result<PathBuf, AdapterError> {
        self.watch(id)?;
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        let request = Request::Attach {
            request: number,
            id: id.clone(),
            artifact: artifact.into(),
            limits: Box::new(limits.clone()),
        };
        let bytes = wire::encode(&request).step("pass on the artifact")?;
        let attached = async {
            let permit = self.reserve().await?;
            let (sender, answer) = oneshot::channel();
            self.shared.lock().attaching.insert(number, sender);
            permit.send((bytes, None));
            answer.await.map_err(|_| self.shared.lock().gone())
        };
        // This one is the init's answer, so its silence says nothing of the launcher.
        let Ok(answer) = timeout(ANSWER, attached).await else {
            self.shared.lock().attaching.remove(&number);
            return Err(AdapterError::step(
                "attach the code in time",
                io::Error::from(io::ErrorKind::TimedOut),
            ));
        };
        answer??;
        Ok(paths::FUNCTION.into())
    }
}

impl Phase {
    fn instance(&self, id: &InstanceId) -> Instance {
        let pid = match self {
            Self::Launching | Self::Failed(_) => None,
            Self::Running { pid } | Self::Ended { pid, .. } => Some(*pid),
        };
        Instance { id: id.clone(), pid }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics while it holds the table")
    }
}

impl Table {
    fn check(&self) -> Result<(), AdapterError> {
        if self.gone.is_some() { Err(self.gone()) } else { Ok(()) }
    }

    fn gone(&self) -> AdapterError {
        gone(self.gone.as_deref().unwrap_or("it is shutting down"))
    }

    fn insert(&mut self, id: &InstanceId) -> Result<watch::Receiver<Phase>, AdapterError> {
        self.check()?;
        if self.instances.contains_key(id) {
            return Err(AdapterError::Exists(id.clone()));
        }
        self.generation += 1;
        let (phase, receiver) = watch::channel(Phase::Launching);
        self.instances.insert(id.clone(), Entry { generation: self.generation, phase });
        Ok(receiver)
    }

    fn forget(&mut self, id: &InstanceId, generation: u64) {
        if self.instances.get(id).is_some_and(|entry| entry.generation == generation) {
            self.instances.remove(id);
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Launched { id, pid } => self.set(&id, |_| Phase::Running { pid }),
            Event::LaunchFailed { id, fault } => {
                self.set(&id, |_| Phase::Failed(fault));
                self.instances.remove(&id);
            }
            Event::Attached { request, result } => {
                if let Some(sender) = self.attaching.remove(&request) {
                    // Whoever asked may have stopped waiting.
                    let _ = sender.send(result);
                }
            }
            Event::Measured { request, result } => {
                if let Some(sender) = self.measuring.remove(&request) {
                    let _ = sender.send(result);
                }
            }
            Event::Ended { id, status, out_of_memory } => {
                let exit = Exit { status: status.into(), out_of_memory };
                self.set(&id, |pid| Phase::Ended { pid, exit, is_released: false });
            }
            Event::Released { id } => {
                if let Some(entry) = self.instances.get(&id) {
                    entry.phase.send_modify(|phase| {
                        if let Phase::Ended { is_released, .. } = phase {
                            *is_released = true;
                        }
                    });
                }
            }
            Event::Warning(text) => tracing::warn!("{text}"),
            Event::Notice(text) => tracing::info!("{text}"),
            Event::Ready(_) | Event::Failed(_) => {}
        }
    }

    fn set(&self, id: &InstanceId, next: impl FnOnce(u32) -> Phase) {
        let Some(entry) = self.instances.get(id) else { return };
        entry.phase.send_modify(|phase| {
            let pid = phase.instance(id).pid.unwrap_or_default();
            *phase = next(pid);
        });
    }

    /// Ends every wait.
    fn end(&mut self, why: String) {
        self.gone.get_or_insert(why);
        self.instances.clear();
        self.attaching.clear();
        self.measuring.clear();
    }
}

impl From<Status> for ExitStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Code(code) => Self::Code(code),
            Status::Signal(signal) => Self::Signal(signal),
            Status::Unknown => Self::Unknown,
        }
    }
}

fn gone(why: &str) -> AdapterError {
    AdapterError::Gone { adapter: NAME, why: why.into() }
}

fn spawn(command: &[OsString], socket: OwnedFd) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    sys::pass_as_three(&mut command, socket);
    command.spawn()
}

async fn send(connection: &AsyncFd<OwnedFd>, (bytes, descriptor): &Outgoing) -> io::Result<()> {
    let descriptor = descriptor.as_ref().map(AsFd::as_fd);
    connection
        .async_io(Interest::WRITABLE, |socket| {
            wire::send_bytes(socket, bytes, descriptor.as_slice())
        })
        .await
}

async fn receive(connection: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<Option<Event>> {
    let received =
        connection.async_io(Interest::READABLE, |socket| wire::receive(socket, buffer)).await?;
    Ok(received.map(|(event, _)| event))
}

/// What does not answer cannot be asked to clean up: the next start does. Its instances end with it.
fn kill(launcher: &mut Child, why: &str) -> String {
    tracing::warn!("killing the launcher: {why}");
    // It may have ended.
    let _ = launcher.start_kill();
    format!("its launcher was killed: {why}")
}

async fn write(
    connection: Arc<AsyncFd<OwnedFd>>,
    shared: Arc<Shared>,
    mut queue: mpsc::Receiver<Outgoing>,
) {
    while let Some(outgoing) = queue.recv().await {
        if let Err(error) = send(&connection, &outgoing).await {
            return shared.lock().end(format!("its launcher cannot be told anything: {error}"));
        }
    }
}

async fn read(connection: Arc<AsyncFd<OwnedFd>>, shared: Arc<Shared>, mut launcher: Child) {
    let mut buffer = vec![0; wire::LONGEST];
    let why = loop {
        let received = tokio::select! {
            received = receive(&connection, &mut buffer) => received,
            () = shared.abandon.notified() => break kill(&mut launcher, "it does not answer"),
        };
        match received {
            Ok(Some(event)) => shared.lock().apply(event),
            Ok(None) => break "its launcher has ended".to_owned(),
            Err(error) => break kill(&mut launcher, &format!("it cannot be heard: {error}")),
        }
    };
    shared.lock().end(why);
    // Its cleaning up is behind it, and a daemon that lives on must collect it.
    if timeout(GONE, launcher.wait()).await.is_err() {
        kill(&mut launcher, "it has closed its socket, and does not end");
        if timeout(GONE, launcher.wait()).await.is_err() {
            tracing::warn!("the launcher was killed and does not end: the kernel holds it up");
        }
    }
}
