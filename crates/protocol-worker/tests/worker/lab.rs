//! What the tests share: sockets in a directory of their own, and a worker that a test plays.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use model::{LaunchSpec, Limits, Network};
use protocol::{Binding, CallLog, Connection, LogStream, Protocol};
use protocol_worker::{
    WorkerConfig, WorkerProtocol,
    frame::{Decoder, Frame, FromHost, FromWorker, Hello, Message, VERSION},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

struct Nowhere;

impl CallLog for Nowhere {
    fn write(&self, _: LogStream, _: &str) {}
}

/// A directory for sockets that goes with the test.
pub(crate) struct Sockets(PathBuf);

impl Sockets {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hearth-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub(crate) fn protocol(&self) -> WorkerProtocol {
        self.protocol_with(Arc::new(Nowhere))
    }

    /// One whose log of entries that belong to no call is this.
    pub(crate) fn protocol_with(&self, log: Arc<dyn CallLog>) -> WorkerProtocol {
        WorkerProtocol::new(WorkerConfig {
            directory: self.0.clone(),
            hello_timeout: Duration::from_secs(20),
            patience: Duration::from_millis(100),
            instance_logs: Arc::new(move |_| log.clone()),
        })
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn spec(id: &str) -> LaunchSpec {
    LaunchSpec {
        id: id.parse().expect("an id"),
        command: vec![],
        zygote: None,
        environment: vec![],
        server: "/".into(),
        programs: vec![],
        limits: Limits::default(),
        network: Network::Host,
        socket: None,
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        version_min: VERSION,
        version_max: VERSION,
        language: "test".into(),
        ..Hello::default()
    }
}

/// A worker's socket, frame by frame.
pub(crate) struct Peer {
    pub(crate) socket: UnixStream,
    decoder: Decoder,
}

impl Peer {
    pub(crate) async fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).await.expect("connect");
        Self { socket, decoder: Decoder::default() }
    }

    pub(crate) async fn send(&mut self, call: u32, message: FromWorker) {
        let mut bytes = BytesMut::new();
        message.encode(call, &mut bytes).expect("encode");
        // The host may have closed already; the next receive says so.
        let _ = self.socket.write_all(&bytes).await;
    }

    pub(crate) async fn receive(&mut self) -> Option<Frame<FromHost>> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the host keeps the protocol") {
                return Some(frame);
            }
            match self.socket.read_buf(&mut self.decoder.buffer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }
}

/// A connection whose worker the test plays itself.
pub(crate) async fn played(sockets: &Sockets) -> (Arc<dyn Connection>, PathBuf) {
    let mut spec = spec("played");
    let connection = sockets.protocol().prepare(&mut spec).expect("prepare");
    (connection, spec.socket.expect("prepared").path)
}

/// One that is bound, with its worker.
pub(crate) async fn bound(protocol: &WorkerProtocol, id: &str) -> (Arc<dyn Connection>, Peer) {
    let mut spec = spec(id);
    let connection = protocol.prepare(&mut spec).expect("prepare");
    let mut worker = Peer::connect(&spec.socket.expect("prepared").path).await;
    worker.send(0, FromWorker::Hello(hello())).await;
    connection.ready().await.expect("ready");
    let binding =
        Binding { code_directory: "/".into(), entrypoint: String::new(), environment: vec![] };
    let (bound, ()) = tokio::join!(connection.bind(&binding), async {
        worker.receive().await;
        worker.send(0, FromWorker::Bound).await;
    });
    bound.expect("bound");
    (connection, worker)
}
