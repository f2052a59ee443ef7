//! A function in memory: the fake adapter, a protocol that answers at once, a stopped clock.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use adapter_fake::FakeAdapter;
use async_trait::async_trait;
use executor::{Engine, Function, FunctionConfig, Mode, Stock, Template};
use model::{Exit, ExitStatus, InstanceId, LaunchSpec, Limits, Network};
use protocol::{
    BindError, Binding, Body, Call, CallError, CallHead, CallLog, ConnectError, Connection,
    LogStream, Protocol, Reply,
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A protocol whose instances live in this process. A call's path says what happens to it: `/hang`
/// is never answered, anything else is answered with the instance's id.
#[derive(Default)]
pub(crate) struct FakeProtocol {
    connections: Mutex<BTreeMap<InstanceId, Arc<FakeConnection>>>,
    /// What the next bind says.
    pub(crate) next_bind: Mutex<Option<BindError>>,
}

pub(crate) struct FakeConnection {
    id: InstanceId,
    closed: watch::Sender<Option<String>>,
    bind: Mutex<Option<BindError>>,
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
            bind: Mutex::new(self.next_bind.lock().expect("lock").take()),
        });
        let mut connections = self.connections.lock().expect("lock");
        connections.insert(spec.id.clone(), connection.clone());
        Ok(Arc::new(Held(connection)))
    }
}

#[async_trait]
impl Connection for Held {
    async fn ready(&self) -> Result<(), ConnectError> {
        Ok(())
    }

    async fn bind(&self, _: &Binding) -> Result<(), BindError> {
        if let Some(why) = &*self.0.closed.borrow() {
            return Err(BindError::Lost { why: why.clone() });
        }
        match self.0.bind.lock().expect("lock").take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let why = |closed: &watch::Ref<'_, Option<String>>| (**closed).clone().unwrap_or_default();
        let mut closed = self.0.closed.subscribe();
        if closed.borrow().is_some() {
            return Err(CallError::Unavailable { why: why(&closed.borrow()) });
        }
        if call.head.path == "/hang" {
            let closed = closed.wait_for(Option::is_some).await.expect("open");
            return Err(CallError::Lost { why: why(&closed) });
        }
        let body = Body::whole(self.0.id.to_string());
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

struct Nowhere;

impl CallLog for Nowhere {
    fn write(&self, _: LogStream, _: &str) {}
}

pub(crate) struct Lab {
    pub(crate) adapter: Arc<FakeAdapter>,
    pub(crate) protocol: Arc<FakeProtocol>,
    pub(crate) stock: Arc<Stock>,
    pub(crate) function: Arc<Function>,
    keeping: JoinHandle<()>,
}

impl Lab {
    /// A function whose adapter was prepared by `plan`.
    pub(crate) fn new(mode: Mode, spares: usize, plan: impl FnOnce(&FakeAdapter)) -> Self {
        let adapter = Arc::new(FakeAdapter::default());
        plan(&adapter);
        let protocol = Arc::new(FakeProtocol::default());
        let engine =
            Engine::new(adapter.clone(), protocol.clone(), Arc::new(|_| Arc::new(Nowhere)));
        let stock = Stock::new(engine, template(), spares);
        let config = FunctionConfig {
            artifact: PathBuf::from("/code"),
            entrypoint: "main".into(),
            environment: vec![],
            mode,
            bind_timeout: secs(60),
            drain_timeout: secs(30),
            max_calls: 100,
        };
        let function = Function::new(stock.clone(), config);
        let keeping = {
            let (function, stock) = (function.clone(), stock.clone());
            tokio::spawn(async move {
                tokio::join!(function.keep(), stock.keep());
            })
        };
        Self { adapter, protocol, stock, function, keeping }
    }

    /// Which instance answered.
    pub(crate) async fn call(&self, path: &str) -> Result<String, CallError> {
        call(&self.function, path, secs(600)).await
    }

    /// Ends an instance as a crash would: its process, and so its connection.
    pub(crate) fn crash(&self, id: &str, exit: Exit) {
        let id: InstanceId = id.parse().expect("an id");
        self.adapter.crash(&id, exit);
        let connection = self.protocol.connection(&id);
        connection.closed.send_replace(Some("the connection is gone".into()));
    }

    pub(crate) async fn shut_down(self) -> Arc<FakeAdapter> {
        self.keeping.abort();
        let _ = self.keeping.await;
        self.function.shut_down().await;
        self.adapter
    }
}

pub(crate) async fn call(
    function: &Function,
    path: &str,
    time: Duration,
) -> Result<String, CallError> {
    let head = CallHead { path: path.into(), ..CallHead::default() };
    let deadline = Some(Instant::now() + time);
    let call = Call { head: Arc::new(head), body: Body::default(), deadline, log: None };
    let reply = function.call(call).await?;
    Ok(String::from_utf8(reply.body.first.to_vec()).expect("text"))
}

pub(crate) fn killed(out_of_memory: bool) -> Exit {
    Exit { status: ExitStatus::Signal(9), out_of_memory }
}

fn template() -> Template {
    let spec = LaunchSpec {
        id: "i".parse().expect("an id"),
        command: vec!["sleep".into()],
        zygote: None,
        environment: vec![],
        server: "/".into(),
        programs: vec![],
        limits: Limits::default(),
        network: Network::None,
        socket: None,
    };
    Template { spec, ready_timeout: secs(30) }
}

/// Lets every task run until it waits for something.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
