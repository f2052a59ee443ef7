//! A worker that writes faster than it may harms nobody but itself.
//!
//! The clock stands still but for those who wait for it.

use std::{
    io::Write,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use protocol::{Body, BodyStream, Call, CallError, CallLog, LogStream, Reply};
use protocol_worker::frame::{FromHost, FromWorker, Message};
use tokio::{io::AsyncWriteExt, time::Instant};

use crate::lab::{Peer, Sockets, bound};

/// What was logged, in order.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Seen {
    fn texts(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }
}

impl CallLog for Seen {
    fn write(&self, _: LogStream, text: &str) {
        self.0.lock().expect("no panic").push(text.to_owned());
    }
}

/// Entries that belong to a call, or with 0 to none. Each says which it is.
fn entries(call: u32, count: u32) -> BytesMut {
    let mut bytes = BytesMut::new();
    for number in 0..count {
        let message = FromWorker::Log { stream: LogStream::Log, text: number.to_string() };
        message.encode(call, &mut bytes).expect("encode");
    }
    bytes
}

fn numbers(count: u32) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn head(more: bool) -> FromWorker {
    FromWorker::Head { status: 200, more, headers: vec![], body: Bytes::new() }
}

fn call(log: Option<Arc<Seen>>, timeout: Option<Duration>) -> Call {
    Call {
        head: Arc::default(),
        body: Body::default(),
        deadline: timeout.map(|timeout| Instant::now() + timeout),
        log: log.map(|log| log as Arc<dyn CallLog>),
    }
}

async fn call_of(worker: &mut Peer) -> u32 {
    let frame = worker.receive().await.expect("a frame");
    assert!(matches!(frame.message, FromHost::Call { .. }), "{frame:?}");
    frame.call
}

#[tokio::test]
async fn others_have_their_turn_while_one_has_much_to_say() {
    const FLOODS: u32 = 8;
    const ENTRIES: u32 = 3000;
    let sockets = Sockets::new("turns");
    let seen = Arc::new(Seen::default());
    let protocol = sockets.protocol_with(seen.clone());
    let mut floods = Vec::new();
    for number in 0..FLOODS {
        floods.push(bound(&protocol, &format!("flood-{number}")).await);
    }
    let (connection, mut worker) = bound(&protocol, "innocent").await;
    let calling = tokio::spawn(async move { connection.call(call(None, None)).await });
    let id = call_of(&mut worker).await;

    // All of it is there before the host looks, and the reply comes last.
    let (mut open, mut plain) = (Vec::new(), Vec::<UnixStream>::new());
    for (connection, flood) in floods {
        open.push(connection);
        plain.push(flood.socket.into_std().expect("a socket"));
    }
    for socket in &mut plain {
        socket.write_all(&entries(0, ENTRIES)).expect("fits into the socket");
    }
    let mut reply = BytesMut::new();
    head(false).encode(id, &mut reply).expect("encode");
    worker.socket.into_std().expect("a socket").write_all(&reply).expect("fits");

    calling.await.expect("no panic").expect("a reply");
    let before = seen.texts().len();
    assert!(before < 5000, "{before} entries of others were taken before the reply");
    let all = usize::try_from(FLOODS * ENTRIES).expect("small");
    while seen.texts().len() < all {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_writes_too_fast_waits_and_loses_nothing() {
    const ENTRIES: u32 = 100_000;
    let sockets = Sockets::new("waits");
    let outside = Arc::new(Seen::default());
    let protocol = sockets.protocol_with(outside.clone());
    let (connection, mut worker) = bound(&protocol, "flood").await;
    let inside = Arc::new(Seen::default());
    let begun = Instant::now();
    let (reply, ()) = tokio::join!(connection.call(call(Some(inside.clone()), None)), async {
        let id = call_of(&mut worker).await;
        let mut bytes = entries(0, ENTRIES);
        bytes.unsplit(entries(id, ENTRIES));
        head(false).encode(id, &mut bytes).expect("encode");
        worker.socket.write_all(&bytes).await.expect("the host reads all of it");
    });
    // What was written before the reply's head has been taken before the call returns.
    assert_eq!(reply.expect("a reply").status, 200);
    assert_eq!(outside.texts(), numbers(ENTRIES));
    assert_eq!(inside.texts(), numbers(ENTRIES));
    // Some 20 MB as they are charged, of which 4 are free, at 2 in a second.
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(7), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_said_before_it_ended_is_read_first() {
    let sockets = Sockets::new("ended");
    let (connection, mut worker) = bound(&sockets.protocol(), "ended").await;
    let seen = Arc::new(Seen::default());
    let (reply, ()) = tokio::join!(connection.call(call(Some(seen.clone()), None)), async move {
        let id = call_of(&mut worker).await;
        let mut bytes = BytesMut::new();
        head(true).encode(id, &mut bytes).expect("encode");
        let part = Bytes::from(vec![b'x'; 64 << 10]);
        FromWorker::Body(part.clone()).encode(id, &mut bytes).expect("encode");
        bytes.unsplit(entries(id, 3000));
        FromWorker::Body(part).encode(id, &mut bytes).expect("encode");
        FromWorker::End.encode(id, &mut bytes).expect("encode");
        worker.socket.write_all(&bytes).await.expect("write");
        // Its end comes before the host grants it more for the body, which fails then.
    });
    let body = whole(reply.expect("a reply").body.rest.expect("more follows")).await;
    assert_eq!(body.len(), 128 << 10);
    assert_eq!(seen.texts(), numbers(3000));
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_amount_does_not_wait() {
    let sockets = Sockets::new("ordinary");
    let (connection, mut worker) = bound(&sockets.protocol(), "ordinary").await;
    let begun = Instant::now();
    for _ in 0..20 {
        let log = Arc::new(Seen::default());
        let (reply, ()) = tokio::join!(connection.call(call(Some(log.clone()), None)), async {
            let id = call_of(&mut worker).await;
            let mut bytes = entries(id, 1000);
            head(false).encode(id, &mut bytes).expect("encode");
            worker.socket.write_all(&bytes).await.expect("write");
        });
        reply.expect("a reply");
        assert_eq!(log.texts().len(), 1000);
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_holds_in_a_flood() {
    let sockets = Sockets::new("deadline");
    let (connection, mut worker) = bound(&sockets.protocol(), "flood").await;
    let timeout = Duration::from_secs(3);
    let begun = Instant::now();
    let flood = async {
        let id = call_of(&mut worker).await;
        let bytes = entries(id, 1000);
        // Until the host has had enough.
        while worker.socket.write_all(&bytes).await.is_ok() {}
    };
    let (reply, ()) = tokio::join!(connection.call(call(None, Some(timeout))), async {
        tokio::select! {
            () = flood => {}
            why = connection.closed() => assert!(why.contains("did not stop"), "{why}"),
        }
    });
    assert!(matches!(reply, Err(CallError::TimedOut)), "{reply:?}");
    let took = begun.elapsed();
    assert!((timeout..timeout + Duration::from_secs(1)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_in_tiny_parts_is_slow_and_whole() {
    const PARTS: u32 = 100_000;
    let sockets = Sockets::new("tiny");
    let (connection, mut worker) = bound(&sockets.protocol(), "tiny").await;
    let begun = Instant::now();
    let (body, ()) = tokio::join!(
        async {
            let reply: Reply = connection.call(call(None, None)).await.expect("a reply");
            whole(reply.body.rest.expect("more follows")).await
        },
        async {
            let id = call_of(&mut worker).await;
            let mut bytes = BytesMut::new();
            head(true).encode(id, &mut bytes).expect("encode");
            for number in 0..PARTS {
                let part = Bytes::copy_from_slice(&number.to_be_bytes()[3..]);
                FromWorker::Body(part).encode(id, &mut bytes).expect("encode");
            }
            FromWorker::End.encode(id, &mut bytes).expect("encode");
            worker.socket.write_all(&bytes).await.expect("write");
        }
    );
    let expected: Vec<u8> = (0..PARTS).map(|number| number.to_be_bytes()[3]).collect();
    assert!(body == expected, "{} bytes", body.len());
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
}

async fn whole(mut stream: BodyStream) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(part) = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
        body.extend_from_slice(&part.expect("no error"));
    }
    body
}
