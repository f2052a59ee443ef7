//! A daemon of canned answers, made of the types that the real one answers with.

use std::{
    cell::Cell,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use api::{
    DeployEvent, Deployment, DeploymentState, ErrorBody, Function, FunctionLoad, Instance,
    InstanceState, Problem, SettingsView, Status,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request, Response,
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use model::{CallEnd, CallId, LogEvent, LogLine, LogSource, Outcome};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};

pub(crate) const TOKEN: &str = "change-me";
pub(crate) const CALL: &str = "01938b6e-7f00-7abc-8def-0123456789ab";

/// Clears a screen's title, forges a line, and turns the direction of what follows.
const HOSTILITY: &str = "\u{1b}]0;owned\u{7}\nforged\u{202e}";

thread_local! {
    /// Whether the daemon of this thread is hostile.
    static HOSTILE: Cell<bool> = const { Cell::new(false) };
}

/// What a request was.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Runs on a thread of its own, as long as the test does.
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,

    /// Answers that come in two pieces wait for this before the second.
    release: Notify,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::with(false)
    }

    /// One whose every text has control characters, a forged line, and a change of direction.
    pub(crate) fn hostile() -> Self {
        Self::with(true)
    }

    fn with(is_hostile: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = std::sync::mpsc::channel();
        let state = shared.clone();
        std::thread::spawn(move || {
            HOSTILE.set(is_hostile);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                // All addresses, so that it has one that is not this machine's loopback.
                let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
                sender.send(listener.local_addr().expect("bound")).expect("the test waits");
                while let Ok((stream, _)) = listener.accept().await {
                    let state = state.clone();
                    let service = service_fn(move |request| answer(request, state.clone()));
                    let serve =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::spawn(serve);
                }
            });
        });
        Self { address: receiver.recv().expect("the daemon starts"), shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.address.port())
    }

    /// Lets the second piece of an answer go.
    pub(crate) fn release(&self) {
        self.shared.release.notify_one();
    }

    /// The last request of this kind.
    pub(crate) fn seen(&self, method: &str, start: &str) -> Seen {
        let seen = self.shared.seen.lock().expect("no panic");
        let is_it = |seen: &&Seen| seen.method == method && seen.target.starts_with(start);
        seen.iter().rev().find(is_it).expect("it was asked for").clone()
    }

    pub(crate) fn all_seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic").clone()
    }
}

/// A body of pieces that come when they are sent.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

type Answer = Response<Pieces>;

async fn answer(request: Request<Incoming>, state: Arc<Shared>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let seen = Seen {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: head.headers,
        body: body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default(),
    };
    state.seen.lock().expect("no panic").push(seen.clone());
    let wanted = format!("Bearer {TOKEN}");
    let is_allowed = seen.headers.get("authorization").is_some_and(|given| *given == wanted);
    Ok(match seen.target.strip_prefix("/fn/") {
        Some(target) => call(&seen, target, &state),
        None if is_allowed => api(&seen, &state),
        None => problem(401, "unauthorized", "who are you?"),
    })
}

fn api(seen: &Seen, state: &Arc<Shared>) -> Answer {
    let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
    let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    match (seen.method.as_str(), parts.as_slice()) {
        ("GET", ["functions"]) => json(&[function("hello"), function("resize")]),
        ("GET", ["instances"]) => json(&instances()),
        ("GET", ["status"]) => {
            let seen = state.seen.lock().expect("no panic");
            let looks = seen.iter().filter(|seen| seen.target == "/v1/status").count() as u64;
            json(&status(looks))
        }
        ("POST", ["functions", name, "deployments"]) => deployment(name, state),
        ("PATCH", ["functions", name, "settings"]) if ["hello", "resize"].contains(name) => {
            deployment(name, state)
        }
        ("DELETE", ["functions", _, "deployments", "0193"]) => {
            state.release.notify_one();
            whole(202, "")
        }
        (_, ["functions", name, ..]) if !["hello", "resize"].contains(name) => unknown(),
        ("GET", ["functions", name]) => json(&function(name)),
        ("DELETE", ["functions", _]) => whole(204, ""),
        ("GET", ["functions", _, "logs"]) if query.contains("call=7f") => {
            problem(404, "unknown-call", "there is no call whose id begins like that")
        }
        // A daemon that was started again: it says what it said, and goes on.
        ("GET", ["functions", "resize", "logs"]) if query.contains("follow=true") => {
            let seen = state.seen.lock().expect("no panic");
            let looks = seen.iter().filter(|seen| seen.target.contains("/resize/logs")).count();
            match looks {
                1 => whole(200, &lines(&log()[..2])),
                2 => problem(503, "stopping", "it is about to end"),
                3 => whole(200, &lines(&log())),
                _ => unknown(),
            }
        }
        ("GET", ["functions", _, "logs"])
            if query.contains("follow=true") && !query.contains("call=") =>
        {
            let (first, rest) = (lines(&log()[..1]), lines(&log()[1..]));
            pieces(state, first, rest)
        }
        ("GET", ["functions", _, "logs"]) => whole(200, &lines(&log())),
        _ => problem(500, "unexpected", "a request that no command should send"),
    }
}

/// Echoes, except for some paths.
fn call(seen: &Seen, target: &str, state: &Arc<Shared>) -> Answer {
    let (name, path) = target.split_once('/').expect("a path");
    let kind = seen.headers.get("content-type").map_or("-", |kind| kind.to_str().expect("text"));
    let mut answer = match (name, path) {
        ("hello", "stream") => pieces(state, "first\n".into(), "second\n".into()),
        ("hello", "fail") => whole(500, "it broke"),
        ("hello", "escape") => whole(200, "\x1b[2Jmoved"),
        ("hello", "cut") => {
            let mut cut = pieces(state, "first\n".into(), "second\n".into());
            cut.headers_mut().insert("content-length", "100".parse().expect("a header"));
            cut
        }
        ("hello", _) => {
            let head = format!("{} /{path} {kind}\n", seen.method);
            let mut body = head.into_bytes();
            body.extend_from_slice(&seen.body);
            bytes(200, body.into())
        }
        _ => return unknown(),
    };
    let timing = "wait;dur=0.012, call;dur=1.5".parse().expect("a header");
    if seen.headers.contains_key(api::TIMING_HEADER) {
        answer.headers_mut().insert("server-timing", timing);
    }
    answer.headers_mut().insert(api::CALL_HEADER, CALL.parse().expect("a header"));
    answer
}

fn deployment(name: &str, state: &Arc<Shared>) -> Answer {
    let step = |step: &str| DeployEvent::Step { step: step.into() };
    let failed = |step: &str, message: &str| DeployEvent::Failed {
        step: step.into(),
        message: message.into(),
    };
    let output = DeployEvent::Output { text: "added 3 packages\n".into() };
    let active = DeployEvent::Active {
        deployment: Box::new(deployed()),
        url: format!("http://{name}.localhost"),
    };
    let begun = lines(&[step("build"), DeployEvent::Output { text: "building\n".into() }]);
    let under_way = |end: DeployEvent| {
        let mut answer = pieces(state, begun.clone(), lines(&[end]));
        answer.headers_mut().insert(api::DEPLOYMENT_HEADER, "0193".parse().expect("a header"));
        answer
    };
    match name {
        "slow" => return under_way(failed("build", "it was cancelled")),
        "late" => return under_way(active),
        "nameless" => return pieces(state, begun, String::new()),
        "ruby" => return problem(422, "invalid", "no runtime `ruby`; there are: node, python"),
        "node-22" => return problem(503, api::NOT_HERE, "no node 22 on this machine"),
        _ => {}
    }
    whole(
        200,
        &lines(&match name {
            "bad" => vec![step("build"), output, failed("build", "no such package")],
            "full" => vec![step("store"), failed("store", "the disk is full")],
            "cut" => vec![step("build")],
            "wrong" => return problem(400, "invalid-settings", "min is 9; it must be at most 1"),
            _ => vec![step("unpack"), step("build"), output, step("start"), active],
        }),
    )
}

fn json(value: &(impl Serialize + ?Sized)) -> Answer {
    whole(200, &text(value))
}

fn lines(values: &[impl Serialize]) -> String {
    values.iter().map(|value| text(value) + "\n").collect()
}

/// A value as JSON. If the daemon is hostile, so is every text that means nothing to a program.
fn text(value: &(impl Serialize + ?Sized)) -> String {
    let mut value = serde_json::to_value(value).expect("JSON");
    if HOSTILE.get() {
        make_hostile("", &mut value);
    }
    value.to_string()
}

fn make_hostile(name: &str, value: &mut Value) {
    match value {
        Value::String(text) if !["event", "state", "stream", "outcome", "call"].contains(&name) => {
            text.push_str(HOSTILITY);
        }
        Value::Array(values) => values.iter_mut().for_each(|value| make_hostile(name, value)),
        Value::Object(members) => {
            members.iter_mut().for_each(|(name, value)| make_hostile(name, value));
        }
        _ => {}
    }
}

fn problem(status: u16, code: &str, message: &str) -> Answer {
    let error = ErrorBody { code: code.into(), message: message.into() };
    whole(status, &text(&Problem { error }))
}

fn unknown() -> Answer {
    problem(404, "unknown-function", "there is no such function")
}

fn whole(status: u16, body: &str) -> Answer {
    bytes(status, body.to_owned().into())
}

fn bytes(status: u16, body: Bytes) -> Answer {
    let (sender, receiver) = mpsc::channel(1);
    sender.try_send(body).expect("room for one");
    Response::builder().status(status).body(Pieces(receiver)).expect("an answer")
}

fn pieces(state: &Arc<Shared>, first: String, rest: String) -> Answer {
    let (sender, receiver) = mpsc::channel(2);
    let state = state.clone();
    tokio::spawn(async move {
        let _ = sender.send(first.into()).await;
        state.release.notified().await;
        let _ = sender.send(rest.into()).await;
    });
    Response::new(Pieces(receiver))
}

fn deployed() -> Deployment {
    Deployment {
        id: "0193".into(),
        state: DeploymentState::Active,
        runtime: "node-20.1.0".into(),
        entrypoint: "index.js".into(),
        artifact: "abcdef".into(),
        artifact_bytes: 40_999_999,
        failure: None,
        created_at: 1_732_108_800_000,
    }
}

pub(crate) fn function(name: &str) -> Function {
    let is_failing = name == "resize";
    Function {
        name: name.into(),
        url: format!("http://{name}.localhost"),
        active: Some(deployed()),
        deployments: vec![deployed()],
        settings: SettingsView {
            environment: vec!["GREETING".into()],
            timeout: "15s".into(),
            memory_bytes: 256 << 20,
            cpus: 0.5,
            network: "egress".into(),
            concurrency: 50,
            min: 0,
            max: 10,
            idle: "5m".into(),
        },
        load: FunctionLoad { trouble: is_failing.then(|| "no memory".into()), ..load(name, 7) },
        created_at: 1_732_108_800_000,
        // Later than any clock: zero seconds ago, whenever the test runs.
        updated_at: 99_999_999_999_999,
    }
}

fn load(name: &str, calls: u64) -> FunctionLoad {
    FunctionLoad {
        name: name.into(),
        serving: 2,
        in_flight: 1,
        calls,
        errors: 1,
        busy_micros: calls * 1500,
        cold_starts: 2,
        ..FunctionLoad::default()
    }
}

fn instances() -> Vec<Instance> {
    let instance = |id: &str, function: Option<&str>, state| Instance {
        id: id.into(),
        function: function.map(String::from),
        runtime: "node-20.1.0".into(),
        state,
        in_flight: 1,
        calls: 7,
        age_seconds: 200.0,
        idle_seconds: 0.0,
        memory_bytes: function.map(|_| 40_999_999),
    };
    vec![
        instance("a1", Some("hello"), InstanceState::Busy),
        instance("b2", None, InstanceState::Spare),
    ]
}

fn status(looks: u64) -> Status {
    Status {
        version: "0.1.0".into(),
        uptime_seconds: 200.0,
        functions: 2,
        instances: 2,
        spares: 1,
        max_instances: 64,
        memory_bytes: 20 << 20,
        load: vec![load("hello", looks * 10)],
    }
}

fn log() -> Vec<LogLine> {
    let call: CallId = CALL.parse().expect("an id");
    let line = |call, event| LogLine { at: 1_732_108_800_123, call, event };
    let end = CallEnd {
        method: "GET".into(),
        path: "/x".into(),
        outcome: Outcome::Failed,
        status: Some(500),
        instance: Some("a1".into()),
        error: Some("it broke".into()),
        phases: [0, 10, 0, 0, 0, 1224, 0],
    };
    vec![
        line(Some(call), LogEvent::Entry { stream: LogSource::Log, text: "hi".into() }),
        line(None, LogEvent::Note { text: "7 bytes were left out".into() }),
        line(Some(call), LogEvent::End(end)),
    ]
}
