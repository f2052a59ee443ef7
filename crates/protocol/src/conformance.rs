//! What every protocol promises, as tests. A protocol's own tests call [`all`].
//!
//! The suite talks to a *scripted instance* that each protocol's tests write in their protocol.
//! Bound with the entrypoint `broken` it does not load, and says `does not load`. Otherwise it
//! answers by the path of a call:
//!
//! | Path | It |
//! | --- | --- |
//! | `/echo` | answers 201 with the request's body, and its method in the header `x-method` |
//! | `/log` | writes `one` to the log, `two` to the errors, prints `three`, answers |
//! | `/throw` | fails with `thrown` |
//! | `/hang` | answers nothing, and gives up when it is cancelled |
//! | `/cancelled` | answers how many calls were cancelled so far |
//! | `/stuck` | answers nothing, whatever happens, and stops listening |
//! | `/stream` | answers `first`, and the rest of the body once `/go` was called: 1 MiB of `x` |
//! | `/go` | lets `/stream` go on |
//! | `/sent` | answers how many bytes `/stream` could send |
//! | `/break` | answers `first`, then fails with `broken off` |
//! | `/die` | ends the conversation |

use std::{
    future::poll_fn,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use model::{InstanceId, LaunchSpec, Limits, Network};
use tokio::time::{Instant, timeout};

use crate::{
    BindError, Binding, Body, BodyError, BodyStream, Call, CallError, CallHead, CallLog,
    Connection, LogStream, Protocol, Reply,
};

/// Far longer than anything here takes; only a broken promise meets it.
const LONG: Duration = Duration::from_secs(20);
/// A deadline that is meant to pass.
const SHORT: Duration = Duration::from_millis(30);

/// A protocol under test.
#[async_trait]
pub trait Subject: Sync {
    /// The protocol. Its patience with instances that do not answer should be short.
    fn protocol(&self) -> &dyn Protocol;
    /// Starts a scripted instance that talks to whatever `prepare` has put into the specification.
    async fn start(&self, spec: &LaunchSpec);
}

/// Runs the whole suite, one promise after the other.
pub async fn all(subject: &dyn Subject) {
    an_instance_is_bound_once(subject).await;
    a_call_before_the_bind_is_not_delivered(subject).await;
    code_that_does_not_load_says_why(subject).await;
    a_reply_has_status_headers_and_body(subject).await;
    large_bodies_go_both_ways(subject).await;
    calls_at_once_are_not_mixed_up(subject).await;
    a_log_is_complete_before_its_reply(subject).await;
    a_failure_carries_its_message(subject).await;
    a_deadline_holds_and_the_instance_goes_on(subject).await;
    a_deadline_holds_when_the_instance_does_not_listen(subject).await;
    a_dropped_call_is_cancelled(subject).await;
    a_reply_streams_and_is_held_back(subject).await;
    a_dropped_body_cancels_its_call(subject).await;
    a_body_that_breaks_off_is_an_error(subject).await;
    a_deadline_holds_for_a_body(subject).await;
    a_lost_instance_ends_its_calls(subject).await;
    draining_lets_running_calls_finish(subject).await;
}

/// A log that remembers.
#[derive(Default)]
struct Remembered(Mutex<Vec<(LogStream, String)>>);

impl CallLog for Remembered {
    fn write(&self, stream: LogStream, text: &str) {
        self.0.lock().expect("no panic in a test's log").push((stream, text.to_owned()));
    }
}

fn spec(id: &str) -> LaunchSpec {
    LaunchSpec {
        id: id.parse().unwrap_or_else(|_| -> InstanceId { panic!("{id} is no id") }),
        command: vec![],
        zygote: None,
        environment: vec![],
        server: PathBuf::from("/"),
        programs: vec![],
        limits: Limits::default(),
        network: Network::Host,
        socket: None,
    }
}

fn binding(entrypoint: &str) -> Binding {
    Binding {
        code_directory: "/code".into(),
        entrypoint: entrypoint.into(),
        environment: vec![("NAME".into(), "value".into())],
    }
}

fn call(path: &str) -> Call {
    let head = CallHead {
        method: "POST".into(),
        url: format!("http://localhost{path}"),
        scheme: "http".into(),
        host: "localhost".into(),
        port: 80,
        path: path.into(),
        ..CallHead::default()
    };
    let deadline = Some(Instant::now() + LONG);
    Call { head: Arc::new(head), body: Body::default(), deadline, log: None }
}

fn call_within(path: &str, time: Duration) -> Call {
    Call { deadline: Some(Instant::now() + time), ..call(path) }
}

async fn unbound(subject: &dyn Subject, id: &str) -> Arc<dyn Connection> {
    let mut spec = spec(id);
    let connection = subject.protocol().prepare(&mut spec).expect("prepare");
    subject.start(&spec).await;
    within(connection.ready()).await.expect("ready");
    connection
}

async fn bound(subject: &dyn Subject, id: &str) -> Arc<dyn Connection> {
    let connection = unbound(subject, id).await;
    within(connection.bind(&binding("main"))).await.expect("bind");
    connection
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("in far less time")
}

async fn next(stream: &mut BodyStream) -> Option<Result<Bytes, BodyError>> {
    within(poll_fn(|cx| stream.as_mut().poll_next(cx))).await
}

async fn gather(body: Body) -> Result<Vec<u8>, BodyError> {
    let mut all = body.first.to_vec();
    if let Some(mut rest) = body.rest {
        while let Some(part) = next(&mut rest).await {
            all.extend_from_slice(&part?);
        }
    }
    Ok(all)
}

async fn answer_text(connection: &dyn Connection, path: &str) -> String {
    let reply = within(connection.call(call(path))).await.expect("a reply");
    String::from_utf8(gather(reply.body).await.expect("a body")).expect("text")
}

/// A worker that could be bound twice could carry one function's secrets into another.
pub async fn an_instance_is_bound_once(subject: &dyn Subject) {
    let connection = bound(subject, "bound-once").await;
    let again = within(connection.bind(&binding("main"))).await;
    assert!(matches!(again, Err(BindError::Lost { .. })), "{again:?}");
    assert_eq!(answer_text(&*connection, "/cancelled").await, "0", "the first bind holds");
}

/// Whoever is told "not delivered" tries another instance.
pub async fn a_call_before_the_bind_is_not_delivered(subject: &dyn Subject) {
    let connection = unbound(subject, "not-bound").await;
    let early = within(connection.call(call("/echo"))).await.expect_err("too early");
    assert!(early.is_safe_to_retry(), "{early:?}");
    within(connection.bind(&binding("main"))).await.expect("still works");
}

/// Developers fix their code by this text.
pub async fn code_that_does_not_load_says_why(subject: &dyn Subject) {
    let connection = unbound(subject, "broken").await;
    match within(connection.bind(&binding("broken"))).await {
        Err(BindError::Load { message }) => assert_eq!(message, "does not load"),
        other => panic!("{other:?}"),
    }
    let early = within(connection.call(call("/echo"))).await.expect_err("nothing to call");
    assert!(early.is_safe_to_retry(), "{early:?}");
}

/// The plain case.
pub async fn a_reply_has_status_headers_and_body(subject: &dyn Subject) {
    let connection = bound(subject, "plain").await;
    let sent = Call { body: Body::whole("text"), ..call("/echo") };
    let reply = within(connection.call(sent)).await.expect("a reply");
    assert_eq!(reply.status, 201);
    assert_eq!(reply.headers, [("x-method".to_owned(), "POST".to_owned())]);
    assert_eq!(gather(reply.body).await.expect("a body"), b"text");
}

/// More than any buffer or window holds.
pub async fn large_bodies_go_both_ways(subject: &dyn Subject) {
    let connection = bound(subject, "large").await;
    let large: Vec<u8> = (0..3 << 20).map(|n: u32| u8::try_from(n % 251).unwrap_or(0)).collect();
    let whole = Call { body: Body::whole(large.clone()), ..call("/echo") };
    let reply = within(connection.call(whole)).await.expect("a reply");
    assert!(gather(reply.body).await.expect("a body") == large, "the body came back as it was");

    let parts = large.chunks(100_000).map(|part| Ok(Bytes::copy_from_slice(part)));
    let rest: BodyStream = Box::pin(Parts(parts.collect::<Vec<_>>().into_iter()));
    let body = Body { first: Bytes::new(), rest: Some(rest) };
    let reply = within(connection.call(Call { body, ..call("/echo") })).await.expect("a reply");
    assert!(gather(reply.body).await.expect("a body") == large, "in parts, too");
}

struct Parts(std::vec::IntoIter<Result<Bytes, BodyError>>);

impl futures_core::Stream for Parts {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

/// One conversation carries many calls.
pub async fn calls_at_once_are_not_mixed_up(subject: &dyn Subject) {
    let connection = bound(subject, "many").await;
    let calls = (0..50).map(|number| {
        let connection = connection.clone();
        tokio::spawn(async move {
            let text = format!("call {number}");
            let sent = Call { body: Body::whole(text.clone()), ..call("/echo") };
            let reply = within(connection.call(sent)).await.expect("a reply");
            assert_eq!(gather(reply.body).await.expect("a body"), text.as_bytes());
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("its own reply");
    }
}

/// Clients read the log as soon as they have the reply.
pub async fn a_log_is_complete_before_its_reply(subject: &dyn Subject) {
    let connection = bound(subject, "logs").await;
    let log = Arc::new(Remembered::default());
    let sent = Call { log: Some(log.clone()), ..call("/log") };
    within(connection.call(sent)).await.expect("a reply");
    let entries = std::mem::take(&mut *log.0.lock().expect("no panic in a test's log"));
    let expected = [
        (LogStream::Log, "one".to_owned()),
        (LogStream::Error, "two".to_owned()),
        (LogStream::NativeOut, "three".to_owned()),
    ];
    assert_eq!(entries, expected);
}

/// The text is the developer's stack trace.
pub async fn a_failure_carries_its_message(subject: &dyn Subject) {
    let connection = bound(subject, "fails").await;
    match within(connection.call(call("/throw"))).await {
        Err(CallError::Failed { message }) => assert_eq!(message, "thrown"),
        other => panic!("{other:?}"),
    }
    assert_eq!(answer_text(&*connection, "/cancelled").await, "0", "the instance goes on");
}

/// A slow call must not cost its neighbours anything.
pub async fn a_deadline_holds_and_the_instance_goes_on(subject: &dyn Subject) {
    let connection = bound(subject, "slow").await;
    let late = within(connection.call(call_within("/hang", SHORT))).await;
    assert!(matches!(late, Err(CallError::TimedOut)), "{late:?}");
    assert_eq!(answer_text(&*connection, "/cancelled").await, "1", "told, and still there");
}

/// An endless loop cannot be asked to stop. Its neighbours must not wait for it for ever.
pub async fn a_deadline_holds_when_the_instance_does_not_listen(subject: &dyn Subject) {
    let connection = bound(subject, "stuck").await;
    let neighbour = {
        let connection = connection.clone();
        tokio::spawn(async move { connection.call(call("/hang")).await })
    };
    tokio::task::yield_now().await;
    let late = within(connection.call(call_within("/stuck", SHORT))).await;
    assert!(matches!(late, Err(CallError::TimedOut)), "{late:?}");
    within(connection.closed()).await;
    let lost = within(neighbour).await.expect("no panic");
    assert!(matches!(lost, Err(CallError::Lost { .. })), "{lost:?}");
    let next = within(connection.call(call("/echo"))).await.expect_err("given up");
    assert!(next.is_safe_to_retry(), "{next:?}");
}

/// Nobody waits for it any more.
pub async fn a_dropped_call_is_cancelled(subject: &dyn Subject) {
    let connection = bound(subject, "dropped").await;
    let impatient = timeout(SHORT, connection.call(call("/hang"))).await;
    assert!(impatient.is_err(), "it hangs");
    assert_eq!(answer_text(&*connection, "/cancelled").await, "1");
}

/// A reader that is slow must not make anybody's memory grow.
pub async fn a_reply_streams_and_is_held_back(subject: &dyn Subject) {
    const WHOLE: usize = 5 + (1 << 20);
    let connection = bound(subject, "streams").await;
    let reply = within(connection.call(call("/stream"))).await.expect("a head");
    assert_eq!(&reply.body.first[..], b"first", "before the function has ended");
    assert!(reply.body.rest.is_some());

    answer_text(&*connection, "/go").await;
    let sent: usize = answer_text(&*connection, "/sent").await.parse().expect("a number");
    assert!(sent < WHOLE, "{sent} bytes were sent to somebody who has read 5");
    assert_eq!(gather(reply.body).await.expect("a body").len(), WHOLE);
}

/// A client that closes its connection in the middle of a download.
pub async fn a_dropped_body_cancels_its_call(subject: &dyn Subject) {
    let connection = bound(subject, "dropped-body").await;
    let reply = within(connection.call(call("/stream"))).await.expect("a head");
    drop(reply);
    assert_eq!(answer_text(&*connection, "/cancelled").await, "1");
}

/// Half a reply must not look like a whole one.
pub async fn a_body_that_breaks_off_is_an_error(subject: &dyn Subject) {
    let connection = bound(subject, "breaks").await;
    let reply: Reply = within(connection.call(call("/break"))).await.expect("a head");
    assert_eq!(&reply.body.first[..], b"first");
    let broken = gather(reply.body).await.expect_err("half a body");
    assert_eq!(broken.to_string(), "broken off");
}

/// A deadline is for the whole reply.
pub async fn a_deadline_holds_for_a_body(subject: &dyn Subject) {
    let connection = bound(subject, "slow-body").await;
    let sent = call_within("/stream", 5 * SHORT);
    let reply = within(connection.call(sent)).await.expect("a head");
    gather(reply.body).await.expect_err("the rest never comes");
    assert_eq!(answer_text(&*connection, "/cancelled").await, "1");
}

/// Nobody may wait for an instance that is gone.
pub async fn a_lost_instance_ends_its_calls(subject: &dyn Subject) {
    let connection = bound(subject, "dies").await;
    let lost = within(connection.call(call("/die"))).await.expect_err("no reply");
    assert!(matches!(lost, CallError::Lost { .. }), "it may have run: {lost:?}");
    assert!(!lost.is_safe_to_retry());
    assert!(!within(connection.closed()).await.is_empty(), "there is a reason");
    let next = within(connection.call(call("/echo"))).await.expect_err("nobody is there");
    assert!(next.is_safe_to_retry(), "{next:?}");
}

/// How instances are replaced without losing a call.
pub async fn draining_lets_running_calls_finish(subject: &dyn Subject) {
    let connection = bound(subject, "drains").await;
    let reply = within(connection.call(call("/stream"))).await.expect("a head");
    answer_text(&*connection, "/go").await;
    let (body, ()) = tokio::join!(gather(reply.body), within(connection.drain()));
    assert_eq!(body.expect("a whole body").len(), 5 + (1 << 20));
    let next = within(connection.call(call("/echo"))).await.expect_err("no more calls");
    assert!(next.is_safe_to_retry(), "{next:?}");
}
