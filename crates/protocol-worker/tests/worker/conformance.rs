//! The worker protocol keeps what every protocol promises, and refuses workers that break it.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use model::LaunchSpec;
use protocol::{
    BindError, Binding, LogStream, Protocol,
    conformance::{self, Subject},
};
use protocol_worker::{
    WorkerProtocol,
    frame::{
        BindFailure, CallFailure, Frame, FromHost, FromWorker, Hello, INITIAL_WINDOW, VERSION,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::lab::{Peer, Sockets, hello, played};

/// The scripted instance of the suite.
struct Script {
    peer: Peer,
    cancelled: usize,
    open: HashSet<u32>,
    /// Echoes that still gather their request.
    gathering: HashMap<u32, (String, Vec<u8>)>,
    /// Bodies on their way out: what is left of each, and how much may be sent.
    sending: HashMap<u32, (Bytes, u32)>,
    streamed: usize,
    stream: Option<u32>,
    is_draining: bool,
}

impl Script {
    async fn run(path: PathBuf) {
        let mut peer = Peer::connect(&path).await;
        peer.send(0, FromWorker::Hello(hello())).await;
        let mut script = Self {
            peer,
            cancelled: 0,
            open: HashSet::new(),
            gathering: HashMap::new(),
            sending: HashMap::new(),
            streamed: 0,
            stream: None,
            is_draining: false,
        };
        while !(script.is_draining && script.open.is_empty()) {
            let Some(Frame { call, message }) = script.peer.receive().await else { return };
            if !script.take(call, message).await {
                return;
            }
        }
    }

    async fn take(&mut self, id: u32, message: FromHost) -> bool {
        match message {
            FromHost::Bind { entrypoint, .. } => self.bind(&entrypoint).await,
            FromHost::Call { head, body, more, .. } => {
                self.open.insert(id);
                return self.call(id, &head.path, &head.method, body, more).await;
            }
            FromHost::Body(part) => self.gather(id, &part).await,
            FromHost::End => self.echo(id).await,
            FromHost::Cancel(_) => {
                if self.open.remove(&id) {
                    self.cancelled += 1;
                    self.sending.remove(&id);
                    self.fail(id, CallFailure::Cancelled, "").await;
                }
            }
            FromHost::Drain => self.is_draining = true,
            FromHost::Window(bytes) => {
                if let Some((_, credit)) = self.sending.get_mut(&id) {
                    *credit += bytes;
                    self.pump(id).await;
                }
            }
        }
        true
    }

    async fn bind(&mut self, entrypoint: &str) {
        let answer = match entrypoint {
            "broken" => FromWorker::BindFailed {
                reason: BindFailure::Syntax,
                message: "does not load".into(),
            },
            _ => FromWorker::Bound,
        };
        self.peer.send(0, answer).await;
    }

    /// False: the script ends here.
    async fn call(&mut self, id: u32, path: &str, method: &str, body: Bytes, more: bool) -> bool {
        match path {
            "/echo" => {
                self.gathering.insert(id, (method.to_owned(), body.to_vec()));
                if !more {
                    self.echo(id).await;
                }
            }
            "/log" => {
                for (stream, text) in [
                    (LogStream::Log, "one"),
                    (LogStream::Error, "two"),
                    (LogStream::NativeOut, "three"),
                ] {
                    let text = text.to_owned();
                    self.peer.send(id, FromWorker::Log { stream, text }).await;
                }
                self.answer(id, "").await;
            }
            "/throw" => {
                self.open.remove(&id);
                self.fail(id, CallFailure::Threw, "thrown").await;
            }
            "/hang" => {}
            "/cancelled" => self.answer(id, &self.cancelled.to_string()).await,
            "/stuck" => {
                // Frames pile up unread until the host gives up.
                let mut end = [0; 4096];
                while let Ok(1..) = self.peer.socket.read(&mut end).await {}
                return false;
            }
            "/stream" => {
                self.head(id, "first", true).await;
                self.stream = Some(id);
            }
            "/go" => {
                let stream = self.stream.expect("streaming");
                let rest = Bytes::from(vec![b'x'; 1 << 20]);
                self.sending.insert(stream, (rest, INITIAL_WINDOW - 5));
                self.pump(stream).await;
                self.answer(id, "").await;
            }
            "/sent" => self.answer(id, &self.streamed.to_string()).await,
            "/break" => {
                self.head(id, "first", true).await;
                self.open.remove(&id);
                self.fail(id, CallFailure::Threw, "broken off").await;
            }
            _ => return false,
        }
        true
    }

    async fn gather(&mut self, id: u32, part: &[u8]) {
        if let Some((_, gathered)) = self.gathering.get_mut(&id) {
            gathered.extend_from_slice(part);
            let granted = u32::try_from(part.len()).expect("small");
            self.peer.send(id, FromWorker::Window(granted)).await;
        }
    }

    async fn echo(&mut self, id: u32) {
        let Some((method, body)) = self.gathering.remove(&id) else { return };
        let headers = vec![("x-method".to_owned(), method)];
        let more = body.len() > 1000;
        let first = if more { Bytes::new() } else { body.clone().into() };
        self.peer.send(id, FromWorker::Head { status: 201, more, headers, body: first }).await;
        if more {
            self.sending.insert(id, (body.into(), INITIAL_WINDOW));
            self.pump(id).await;
        } else {
            self.open.remove(&id);
        }
    }

    /// Sends what credit allows.
    async fn pump(&mut self, id: u32) {
        while let Some((rest, credit)) = self.sending.get_mut(&id) {
            if rest.is_empty() {
                self.sending.remove(&id);
                self.open.remove(&id);
                return self.peer.send(id, FromWorker::End).await;
            }
            let allowed = usize::try_from(*credit).expect("small");
            let part = rest.split_to(rest.len().min(allowed).min(50_000));
            if part.is_empty() {
                return;
            }
            *credit -= u32::try_from(part.len()).expect("small");
            self.streamed += part.len();
            self.peer.send(id, FromWorker::Body(part)).await;
        }
    }

    async fn head(&mut self, id: u32, body: &str, more: bool) {
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.peer.send(id, FromWorker::Head { status: 200, more, headers: vec![], body }).await;
    }

    async fn answer(&mut self, id: u32, body: &str) {
        self.open.remove(&id);
        self.head(id, body, false).await;
    }

    async fn fail(&mut self, id: u32, reason: CallFailure, message: &str) {
        let message = message.to_owned();
        self.peer.send(id, FromWorker::Failed { reason, message }).await;
    }
}

struct Scripted(WorkerProtocol);

#[async_trait]
impl Subject for Scripted {
    fn protocol(&self) -> &dyn Protocol {
        &self.0
    }

    async fn start(&self, spec: &LaunchSpec) {
        let socket = spec.socket.clone().expect("prepared");
        assert_eq!(socket.variable, "HEARTH_SOCKET");
        tokio::spawn(Script::run(socket.path));
    }
}

#[tokio::test]
async fn the_worker_protocol_keeps_every_promise() {
    let sockets = Sockets::new("conformance");
    conformance::all(&Scripted(sockets.protocol())).await;
}

#[tokio::test]
async fn a_socket_is_gone_once_a_worker_has_connected() {
    let sockets = Sockets::new("one-worker");
    let (connection, path) = played(&sockets).await;
    let mut worker = Peer::connect(&path).await;
    worker.send(0, FromWorker::Hello(hello())).await;
    connection.ready().await.expect("ready");
    UnixStream::connect(&path).await.expect_err("nobody takes the worker's place");
    assert!(!path.parent().expect("a directory").exists());
}

#[tokio::test]
async fn dropping_a_connection_removes_its_socket_and_hangs_up() {
    let sockets = Sockets::new("dropped");
    let (connection, path) = played(&sockets).await;
    drop(connection);
    let gone = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("removed");

    let (connection, path) = played(&sockets).await;
    let mut worker = Peer::connect(&path).await;
    worker.send(0, FromWorker::Hello(hello())).await;
    connection.ready().await.expect("ready");
    drop(connection);
    assert_eq!(worker.receive().await, None);
}

#[tokio::test]
async fn a_worker_that_breaks_the_protocol_is_given_up() {
    let sockets = Sockets::new("breaks");
    let head =
        || FromWorker::Head { status: 200, more: false, headers: vec![], body: Bytes::new() };
    for (name, id, message, expected) in [
        ("a reply to nobody's call", 7, head(), "call 7"),
        ("a second hello", 0, FromWorker::Hello(hello()), "twice"),
        ("an answer to no bind", 0, FromWorker::Bound, "bind"),
    ] {
        let (connection, path) = played(&sockets).await;
        let mut worker = Peer::connect(&path).await;
        worker.send(0, FromWorker::Hello(hello())).await;
        connection.ready().await.expect("ready");
        worker.send(id, message).await;
        let why = connection.closed().await;
        assert!(why.contains(expected), "{name}: {why}");
    }
}

#[tokio::test]
async fn garbage_instead_of_frames_is_refused() {
    let sockets = Sockets::new("garbage");
    let (connection, path) = played(&sockets).await;
    let mut worker = Peer::connect(&path).await;
    worker.socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
    let error = connection.ready().await.expect_err("not a worker");
    assert!(error.to_string().contains("broke the protocol"), "{error}");
}

#[tokio::test]
async fn a_worker_of_another_version_is_refused() {
    let sockets = Sockets::new("version");
    let (connection, path) = played(&sockets).await;
    let mut worker = Peer::connect(&path).await;
    let newer = Hello { version_min: VERSION + 1, version_max: VERSION + 3, ..hello() };
    worker.send(0, FromWorker::Hello(newer)).await;
    let error = connection.ready().await.expect_err("no common version");
    assert!(error.to_string().contains("versions 2 to 4"), "{error}");
}

#[tokio::test]
async fn a_body_beyond_what_was_granted_is_refused() {
    let sockets = Sockets::new("window");
    let (connection, path) = played(&sockets).await;
    let mut worker = Peer::connect(&path).await;
    worker.send(0, FromWorker::Hello(hello())).await;
    connection.ready().await.expect("ready");
    let binding =
        Binding { code_directory: "/".into(), entrypoint: String::new(), environment: vec![] };
    let (bound, _) = tokio::join!(connection.bind(&binding), async {
        worker.receive().await;
        worker.send(0, FromWorker::Bound).await;
    });
    bound.expect("bound");
    let call = protocol::Call {
        head: Arc::default(),
        body: protocol::Body::default(),
        deadline: None,
        log: None,
    };
    let (reply, _) = tokio::join!(connection.call(call), async {
        let call = worker.receive().await.expect("the call").call;
        let body = Bytes::from(vec![0; 200_000]);
        let head =
            FromWorker::Head { status: 200, more: true, headers: vec![], body: body.clone() };
        worker.send(call, head).await;
        worker.send(call, FromWorker::Body(body)).await;
    });
    drop(reply);
    let why = connection.closed().await;
    assert!(why.contains("more of a body than it was granted"), "{why}");
}

#[tokio::test]
async fn an_environment_that_does_not_fit_is_a_load_error() {
    let sockets = Sockets::new("environment");
    let (connection, path) = played(&sockets).await;
    let mut worker = Peer::connect(&path).await;
    worker.send(0, FromWorker::Hello(hello())).await;
    connection.ready().await.expect("ready");
    let binding = Binding {
        code_directory: "/".into(),
        entrypoint: String::new(),
        environment: vec![("LARGE".into(), "x".repeat(2 << 20))],
    };
    let refused = connection.bind(&binding).await;
    assert!(matches!(refused, Err(BindError::Load { .. })), "{refused:?}");
}
