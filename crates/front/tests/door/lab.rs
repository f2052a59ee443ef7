//! Functions in memory, and clients that send bytes.

use std::{
    fmt::Write,
    future::pending,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use axum::Router;
use edge::{Server, ServerLimits};
use executor::{CallError, Progress};
use front::{Callee, Door, DoorConfig, Functions, Journal, Record, Target};
use futures_core::Stream;
use model::{CallEnd, CallId, FunctionName, Outcome};
use protocol::{Body, BodyError, Call, CallHead, CallLog, LogStream, Reply};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What every function does that is not named after something else it does: `a`, `b`, `ab`, …
pub(crate) const ECHOES: [&str; 4] = ["a", "b", "ab", "fn"];

/// What has happened.
#[derive(Default)]
pub(crate) struct Journals {
    pub(crate) opened: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) called: AtomicUsize,
    ends: Mutex<Vec<(CallId, CallEnd)>>,
    logs: Mutex<Vec<String>>,
}

impl Journals {
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.ends.lock().expect("no panic").iter().map(|(_, end)| end.outcome).collect()
    }
}

struct Memory(Arc<Journals>);

impl Functions for Memory {
    /// Finds more than it should, as a store might that ignores case: the door must not.
    fn find(&self, name: &str) -> Option<Target> {
        let name = &*name.to_ascii_lowercase();
        let behaviour = match name {
            name if ECHOES.contains(&name) => Behaviour::Echo,
            "hang" => Behaviour::Hang,
            "stream" => Behaviour::Stream(vec![Ok("first "), Ok("second")], false),
            "stuck" => Behaviour::Stream(vec![Ok("first")], true),
            "broken" => Behaviour::Stream(vec![Ok("first"), Err("it broke")], false),
            "inject" => Behaviour::Inject,
            "empty" => Behaviour::Status(204),
            "odd" => Behaviour::Status(42),
            "errors" => Behaviour::Errors,
            _ => return None,
        };
        Some(Target {
            name: name.parse().expect("only names are known"),
            function: Arc::new(Function { name: name.into(), behaviour, journals: self.0.clone() }),
            journal: Arc::new(MemoryJournal(self.0.clone())),
            timeout: Duration::from_secs(15),
        })
    }
}

enum Behaviour {
    /// Says what it was asked.
    Echo,
    Hang,
    /// Parts, and whether it stays open behind them.
    Stream(Vec<Result<&'static str, &'static str>>, bool),
    /// Headers that it must not send.
    Inject,
    Status(u16),
    /// The error that the path names.
    Errors,
}

struct Function {
    name: String,
    behaviour: Behaviour,
    journals: Arc<Journals>,
}

/// Counts what runs.
struct Running(Arc<Journals>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Callee for Function {
    async fn call(&self, call: Call, progress: &Progress) -> Result<Reply, CallError> {
        self.journals.called.fetch_add(1, Ordering::Relaxed);
        self.journals.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(self.journals.clone());
        progress.given_to("i-1".parse().expect("an id"));
        progress.note(|phases| phases.wait = Duration::from_micros(12));
        let reply = |status, headers: &[(&str, &str)], body| {
            let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
            Ok(Reply { status, headers: headers.iter().map(owned).collect(), body })
        };
        match &self.behaviour {
            Behaviour::Echo => reply(200, &[], Body::whole(echo(&self.name, &call))),
            Behaviour::Hang => pending().await,
            Behaviour::Stream(parts, stays_open) => {
                let parts = parts.clone().into_iter();
                let rest =
                    Parts { parts, stays_open: *stays_open, is_due: false, _running: running };
                let body = Body { first: Vec::new().into(), rest: Some(Box::pin(rest)) };
                reply(200, &[], body)
            }
            Behaviour::Inject => reply(
                200,
                &[
                    ("x-split", "a\r\nset-cookie: stolen=1"),
                    ("x-bare", "a\nset-cookie: stolen=1"),
                    ("x-nul", "a\0b"),
                    ("x-name\r\nset-cookie", "stolen=1"),
                    ("content-length", "1"),
                    ("transfer-encoding", "chunked"),
                    ("connection", "upgrade"),
                    ("x-hearth-call", "forged"),
                    ("x-open-runtimes-log-id", "forged"),
                    ("x-fine", "yes"),
                ],
                Body::whole("hello"),
            ),
            Behaviour::Status(status) => reply(*status, &[], Body::whole("not sent")),
            Behaviour::Errors => Err(error(&call.head.path)),
        }
    }
}

fn echo(name: &str, call: &Call) -> String {
    let head = &call.head;
    let mut text = format!("function: {name}\n{} {}\npath: {}\n", head.method, head.url, head.path);
    for (name, value) in &head.headers {
        writeln!(text, "{name}: {value}").expect("a string takes all");
    }
    let body = String::from_utf8_lossy(&call.body.first);
    write!(text, "\n{body}").expect("a string takes all");
    text
}

fn error(path: &str) -> CallError {
    use protocol::CallError as Call;
    let why = || "the reason\n    at secret.js:1".to_owned();
    let retry_after = Duration::from_millis(2500);
    match path {
        "/failed" => Call::Failed { message: why() }.into(),
        "/not-loaded" => Call::NotLoaded { message: why() }.into(),
        "/timed-out" => Call::TimedOut.into(),
        "/lost" => Call::Lost { why: why() }.into(),
        "/unavailable" => Call::Unavailable { why: why() }.into(),
        "/busy" => CallError::Busy { why: why(), retry_after },
        _ => CallError::BackingOff { cause: Call::Lost { why: why() }, retry_after },
    }
}

struct Parts {
    parts: std::vec::IntoIter<Result<&'static str, &'static str>>,
    stays_open: bool,
    is_due: bool,
    _running: Running,
}

impl Stream for Parts {
    type Item = Result<bytes::Bytes, BodyError>;

    /// Each part comes in a turn of its own, as from an instance.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.is_due = !self.is_due;
        if !self.is_due {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.parts.next() {
            Some(part) => {
                let error = |why: &str| BodyError::Failed { message: why.to_owned() };
                Poll::Ready(Some(part.map(Into::into).map_err(error)))
            }
            None if self.stays_open => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

struct MemoryJournal(Arc<Journals>);

impl Journal for MemoryJournal {
    fn open(&self, call: CallId, _: &CallHead) -> Arc<dyn Record> {
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        Arc::new(MemoryRecord { call, journals: self.0.clone() })
    }
}

struct MemoryRecord {
    call: CallId,
    journals: Arc<Journals>,
}

impl CallLog for MemoryRecord {
    fn write(&self, _: LogStream, text: &str) {
        self.journals.logs.lock().expect("no panic").push(text.to_owned());
    }
}

impl Record for MemoryRecord {
    fn end(&self, end: CallEnd) {
        self.journals.ends.lock().expect("no panic").push((self.call, end));
    }

    fn as_log(self: Arc<Self>) -> Arc<dyn CallLog> {
        self
    }
}

/// A door on a free port.
pub(crate) struct Lab {
    pub(crate) address: SocketAddr,
    pub(crate) journals: Arc<Journals>,
    stop: Arc<Notify>,
    server: JoinHandle<()>,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        Self::with(ServerLimits::default(), DoorConfig::default()).await
    }

    pub(crate) async fn with(limits: ServerLimits, config: DoorConfig) -> Self {
        let server = Server::bind(([127, 0, 0, 1], 0).into(), limits).await.expect("a free port");
        let address = server.address().expect("an address");
        let journals = Arc::new(Journals::default());
        let admin = Router::new().fallback(async || "admin");
        let door = Arc::new(Door::new(config, Arc::new(Memory(journals.clone())), admin));
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let server = tokio::spawn(server.run(door, async move { stopped.notified().await }));
        Self { address, journals, stop, server }
    }

    pub(crate) async fn send(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.expect("connect");
        client.write_all(bytes.as_ref()).await.expect("send");
        client
    }

    /// Sends this and returns all that comes until the connection ends.
    pub(crate) async fn ask(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.send(bytes).await;
        rest_of(&mut client).await
    }

    /// Asks with GET, on a connection of its own.
    pub(crate) async fn get(&self, target: &str, host: &str) -> String {
        self.ask(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
            .await
    }

    pub(crate) fn called(&self) -> usize {
        self.journals.called.load(Ordering::Relaxed)
    }

    pub(crate) async fn until_running(&self, calls: usize) {
        until(|| self.journals.running.load(Ordering::Relaxed) == calls).await;
    }

    /// Returns once as many records have ended as were opened, with how they did.
    pub(crate) async fn ends(&self) -> Vec<(CallId, CallEnd)> {
        let ends = || self.journals.ends.lock().expect("no panic").clone();
        until(|| ends().len() >= self.journals.opened.load(Ordering::Relaxed)).await;
        assert_eq!(ends().len(), self.journals.opened.load(Ordering::Relaxed), "each ends once");
        ends()
    }

    /// How the only call ended.
    pub(crate) async fn only_end(&self) -> CallEnd {
        let mut ends = self.ends().await;
        assert_eq!(ends.len(), 1, "{ends:?}");
        ends.remove(0).1
    }

    pub(crate) fn logs(&self) -> Vec<String> {
        self.journals.logs.lock().expect("no panic").clone()
    }

    pub(crate) fn tell_to_stop(&self) {
        self.stop.notify_one();
    }

    pub(crate) async fn stop(self) -> Arc<Journals> {
        self.tell_to_stop();
        self.ended().await
    }

    /// Returns when it has stopped.
    pub(crate) async fn ended(self) -> Arc<Journals> {
        timeout(LONG, self.server).await.expect("it ends").expect("no panic");
        self.journals
    }
}

pub(crate) async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, waiting).await.expect("in far less time");
}

/// Everything until the end of the connection; a reset is an end, too.
pub(crate) async fn rest_of(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(LONG, client.read_to_end(&mut bytes)).await.expect("an end");
    String::from_utf8(bytes).expect("text")
}

/// Reads until this text has come.
pub(crate) async fn read_until(client: &mut TcpStream, text: &str) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&bytes).contains(text) {
            let read = client.read_buf(&mut bytes).await.expect("read");
            assert_ne!(read, 0, "ended early: {}", String::from_utf8_lossy(&bytes));
        }
    };
    timeout(LONG, reading).await.expect("what was waited for");
    String::from_utf8(bytes).expect("text")
}

pub(crate) fn status(response: &str) -> u16 {
    let digits = response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

pub(crate) fn header<'a>(response: &'a str, name: &str) -> Option<&'a str> {
    let head = response.split("\r\n\r\n").next()?;
    let named = |line: &'a str| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name));
    head.lines().find_map(named).map(|(_, value)| value)
}

pub(crate) fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

pub(crate) fn a_name(name: &str) -> bool {
    name.parse::<FunctionName>().is_ok()
}
