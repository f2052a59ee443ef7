//! An executor in memory: the fake adapter, a protocol that answers at once, a stopped clock.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use adapter_fake::FakeAdapter;
use async_trait::async_trait;
use executor::{
    CallError, Engine, Executor, ExecutorConfig, PoolLimits, Progress, Revision, Service,
    SparePolicy, Template,
};
use model::{Exit, ExitStatus, InstanceId, LaunchSpec, Limits, Network, Scale};
use protocol::{
    BindError, Binding, Body, Call, CallHead, CallLog, ConnectError, Connection, LogStream,
    Protocol, Reply,
};
use tokio::{sync::watch, time::Instant};

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A protocol whose instances live in this process. A call's path says what happens to it: `/hang`
/// is never answered, `/sleep/<ms>` late, `/fail` with a failure, `/stream` without end, `/parts` in two parts;
/// anything else is answered with the instance's id.
#[derive(Default)]
pub(crate) struct FakeProtocol {
    connections: Mutex<BTreeMap<InstanceId, Arc<FakeConnection>>>,
    /// What the next binds say.
    pub(crate) binds: Mutex<VecDeque<BindError>>,
    /// How long a bind takes.
    pub(crate) bind_time: Mutex<Duration>,
    /// How long an instance takes until it is ready.
    pub(crate) ready_time: Mutex<Duration>,
    /// Calls that reached an instance.
    pub(crate) delivered: Arc<AtomicUsize>,
}

pub(crate) struct FakeConnection {
    id: InstanceId,
    closed: watch::Sender<Option<String>>,
    bind: Mutex<Option<BindError>>,
    bind_time: Duration,
    ready_time: Duration,
    delivered: Arc<AtomicUsize>,
}

/// What the engine holds: the connection ends with it.
struct Held(Arc<FakeConnection>);

impl FakeProtocol {
    fn connection(&self, id: &InstanceId) -> Arc<FakeConnection> {
        self.connections.lock().expect("lock")[id].clone()
    }
}

impl Protocol for FakeProtocol {
    fn prepare(&self, spec: &mut LaunchSpec) -> Result<Arc<dyn Connection>, ConnectError> {
        let connection = Arc::new(FakeConnection {
            id: spec.id.clone(),
            closed: watch::Sender::new(None),
            bind: Mutex::new(self.binds.lock().expect("lock").pop_front()),
            ready_time: *self.ready_time.lock().expect("lock"),
            bind_time: *self.bind_time.lock().expect("lock"),
            delivered: self.delivered.clone(),
        });
        let mut connections = self.connections.lock().expect("lock");
        connections.insert(spec.id.clone(), connection.clone());
        Ok(Arc::new(Held(connection)))
    }
}

#[async_trait]
impl Connection for Held {
    async fn ready(&self) -> Result<(), ConnectError> {
        tokio::time::sleep(self.0.ready_time).await;
        Ok(())
    }

    async fn bind(&self, _: &Binding) -> Result<(), BindError> {
        if let Some(why) = &*self.0.closed.borrow() {
            return Err(BindError::Lost { why: why.clone() });
        }
        tokio::time::sleep(self.0.bind_time).await;
        match self.0.bind.lock().expect("lock").take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    async fn call(&self, call: Call) -> Result<Reply, protocol::CallError> {
        let why = |closed: &watch::Ref<'_, Option<String>>| (**closed).clone().unwrap_or_default();
        let mut closed = self.0.closed.subscribe();
        if closed.borrow().is_some() {
            return Err(protocol::CallError::Unavailable { why: why(&closed.borrow()) });
        }
        self.0.delivered.fetch_add(1, Ordering::Relaxed);
        if call.head.path == "/fail" {
            return Err(protocol::CallError::Failed { message: "planned".into() });
        }
        if let Some(millis) = call.head.path.strip_prefix("/sleep/") {
            let millis = Duration::from_millis(millis.parse().expect("a number"));
            let end = tokio::time::timeout(millis, closed.wait_for(Option::is_some)).await;
            if let Ok(closed) = end {
                return Err(protocol::CallError::Lost { why: why(&closed.expect("open")) });
            }
        }
        if call.head.path == "/hang" {
            let closed = closed.wait_for(Option::is_some).await.expect("open");
            return Err(protocol::CallError::Lost { why: why(&closed) });
        }
        let mut body = Body::whole(self.0.id.to_string());
        match call.head.path.as_str() {
            "/stream" => body.rest = Some(Box::pin(Endless)),
            "/parts" => body.rest = Some(Box::pin(OnePart(Some("part".into())))),
            _ => {}
        }
        Ok(Reply { status: 200, headers: vec![], body })
    }

    async fn drain(&self) {
        self.0.closed.send_replace(Some("drained".into()));
    }

    async fn closed(&self) -> String {
        let mut closed = self.0.closed.subscribe();
        let closed = closed.wait_for(Option::is_some).await.expect("open");
        (*closed).clone().unwrap_or_default()
    }
}

/// The rest of a body: one part, and the end.
struct OnePart(Option<bytes::Bytes>);

impl futures_core::Stream for OnePart {
    type Item = Result<bytes::Bytes, protocol::BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

/// A body that is always still coming.
struct Endless;

impl futures_core::Stream for Endless {
    type Item = Result<bytes::Bytes, protocol::BodyError>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Pending
    }
}

struct Nowhere;

impl CallLog for Nowhere {
    fn write(&self, _: LogStream, _: &str) {}
}

pub(crate) struct Lab {
    pub(crate) adapter: Arc<FakeAdapter>,
    pub(crate) protocol: Arc<FakeProtocol>,
    pub(crate) executor: Executor,
}

/// How a lab differs from the usual one.
pub(crate) struct Setup {
    pub(crate) instances: u32,
    pub(crate) reserve: u32,
    pub(crate) waiting: usize,
    pub(crate) spares: SparePolicy,
}

pub(crate) const NO_SPARES: SparePolicy = SparePolicy { min: 0, max: 0, keep_for: Duration::ZERO };

impl Default for Setup {
    fn default() -> Self {
        Self { instances: 100, reserve: 0, waiting: 1000, spares: NO_SPARES }
    }
}

/// One instance for all calls.
pub(crate) fn one() -> Scale {
    Scale { concurrency: 1000, min: 0, max: 1, idle: secs(300) }
}

/// One call in each of at most `max` instances.
pub(crate) fn single(max: u32) -> Scale {
    Scale { concurrency: 1, min: 0, max, idle: secs(300) }
}

impl Lab {
    pub(crate) fn new(setup: Setup) -> Self {
        let adapter = Arc::new(FakeAdapter::default());
        let protocol = Arc::new(FakeProtocol::default());
        let engine =
            Engine::new(adapter.clone(), protocol.clone(), Arc::new(|_| Arc::new(Nowhere)));
        let Setup { instances, reserve, waiting, spares } = setup;
        let limits = PoolLimits { instances, reserve, waiting_per_function: waiting, waiting };
        let config = ExecutorConfig { limits, spares, ..ExecutorConfig::default() };
        let executor = Executor::new(engine, config);
        Self { adapter, protocol, executor }
    }

    /// A function whose instances are called `i-<number>`.
    pub(crate) fn serve(&self, scale: Scale) -> Arc<Service> {
        Arc::new(self.executor.serve(self.revision("i", scale)))
    }

    pub(crate) fn revision(&self, label: &str, scale: Scale) -> Revision {
        Revision {
            label: label.into(),
            stock: self.executor.stock(&template(label)),
            artifact: PathBuf::from("/code"),
            entrypoint: "main".into(),
            environment: vec![],
            limits: Limits::default(),
            scale,
            is_single_use: false,
            bind_timeout: secs(60),
            on_bind: None,
        }
    }

    /// Calls that reached an instance.
    pub(crate) fn delivered(&self) -> usize {
        self.protocol.delivered.load(Ordering::Relaxed)
    }

    /// What the next bind says.
    pub(crate) fn plan_bind(&self, error: BindError) {
        self.protocol.binds.lock().expect("lock").push_back(error);
    }

    /// What the bind of an instance says that is there already.
    pub(crate) fn plan_bind_of(&self, id: &str, error: BindError) {
        let connection = self.protocol.connection(&id.parse().expect("an id"));
        *connection.bind.lock().expect("lock") = Some(error);
    }

    /// Ends an instance as a crash would: its process, and so its connection.
    pub(crate) fn crash(&self, id: &str, exit: Exit) {
        let id: InstanceId = id.parse().expect("an id");
        self.adapter.crash(&id, exit);
        let connection = self.protocol.connection(&id);
        connection.closed.send_replace(Some("the connection is gone".into()));
    }
}

/// Which instance answered.
pub(crate) async fn call(
    service: &Service,
    path: &str,
    time: Duration,
) -> Result<String, CallError> {
    call_with(service, path, time, &Progress::default()).await
}

pub(crate) async fn call_with(
    service: &Service,
    path: &str,
    time: Duration,
    progress: &Progress,
) -> Result<String, CallError> {
    let head = CallHead { path: path.into(), ..CallHead::default() };
    let deadline = Some(Instant::now() + time);
    let call = Call { head: Arc::new(head), body: Body::default(), deadline, log: None };
    let reply = service.call(call, progress).await?;
    Ok(String::from_utf8(reply.body.first.to_vec()).expect("text"))
}

/// A call in a task of its own.
pub(crate) fn spawn_call(
    service: &Arc<Service>,
    path: &str,
    time: Duration,
) -> tokio::task::JoinHandle<Result<String, CallError>> {
    let (service, path) = (service.clone(), path.to_owned());
    tokio::spawn(async move { call(&service, &path, time).await })
}

pub(crate) fn killed(out_of_memory: bool) -> Exit {
    Exit { status: ExitStatus::Signal(9), out_of_memory }
}

fn template(id: &str) -> Template {
    let spec = LaunchSpec {
        id: id.parse().expect("an id"),
        command: vec!["sleep".into()],
        zygote: None,
        environment: vec![],
        server: "/".into(),
        programs: vec![],
        limits: Limits::default(),
        network: Network::None,
        socket: None,
    };
    Template { runtime: id.parse().expect("a name"), spec, ready_timeout: secs(30) }
}

/// Lets every task run until it waits for something.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
