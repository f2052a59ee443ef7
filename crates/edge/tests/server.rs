//! The server around a handler in memory: who gives way, and what is refused before it runs.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use edge::{
    Bodies, BodyLimits, Client, Handler, LocalListener, ReplyBody, Sender, Server, ServerLimits,
};
use hyper::{Request, Response, StatusCode, body::Incoming};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::{Notify, Semaphore},
    task::JoinHandle,
    time::timeout,
};

const LONG: Duration = Duration::from_secs(20);
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const HELD: &str = "GET /held HTTP/1.1\r\nhost: a\r\n\r\n";

/// Reads the body and says `hello`; `/held` waits for a permit first, `/large` answers with more
/// than the kernel keeps for a client.
struct Hello {
    bodies: Bodies,
    permits: Semaphore,
    answered: AtomicUsize,
    running: AtomicUsize,
}

impl Handler for Hello {
    type Body = ReplyBody;

    async fn answer(
        &self,
        request: Request<Incoming>,
        client: &Arc<Client>,
    ) -> Response<ReplyBody> {
        self.running.fetch_add(1, Ordering::Relaxed);
        let path = request.uri().path().to_owned();
        let read = {
            let sender = Sender { client: client.address().ip(), function: "" };
            self.bodies.read(request.into_body(), &sender).await
        };
        if path == "/held" {
            self.permits.acquire().await.expect("never closed").forget();
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        let text = match (read, path.as_str()) {
            _ if client.is_late() => Bytes::from_static(b"late: hello"),
            (Ok(_), "/large") => Bytes::from(vec![b'x'; 64 << 20]),
            (Ok(_), _) => Bytes::from_static(b"hello"),
            (Err(_), _) => Bytes::from_static(b"unread"),
        };
        Response::new(ReplyBody::whole(text))
    }

    fn refuse_ambiguous(&self) -> Response<ReplyBody> {
        let mut response = Response::new(ReplyBody::whole("ambiguous"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    }
}

struct Lab {
    address: SocketAddr,
    handler: Arc<Hello>,
    stop: Arc<Notify>,
    server: JoinHandle<()>,
}

impl Lab {
    async fn new(limits: ServerLimits) -> Self {
        Self::with(limits, None).await
    }

    async fn with(limits: ServerLimits, local: Option<LocalListener>) -> Self {
        let server = Server::bind(([127, 0, 0, 1], 0).into(), limits).await.expect("a free port");
        let server = match local {
            Some(local) => server.with_local(local),
            None => server,
        };
        let address = server.address().expect("an address");
        let (bodies, permits) = (Bodies::new(BodyLimits::default()), Semaphore::new(0));
        let handler = Hello { bodies, permits, answered: 0.into(), running: 0.into() };
        let handler = Arc::new(handler);
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let running = server.run(handler.clone(), async move { stopped.notified().await });
        Self { address, handler, stop, server: tokio::spawn(running) }
    }

    async fn with_connections(connections: usize) -> Self {
        Self::new(ServerLimits { connections, ..ServerLimits::default() }).await
    }

    async fn send(&self, bytes: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.expect("connect");
        client.write_all(bytes.as_bytes()).await.expect("send");
        client
    }

    /// A client whose first request has been answered.
    async fn idle(&self) -> TcpStream {
        let mut client = self.send(GET).await;
        one_of(&mut client).await;
        client
    }

    async fn until_running(&self, requests: usize) {
        let reached = async {
            while self.handler.running.load(Ordering::Relaxed) < requests {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, reached).await.expect("in far less time");
    }
}

/// Reads one response.
async fn one_of(client: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while !bytes.ends_with(b"hello") {
            assert_ne!(client.read_buf(&mut bytes).await.expect("read"), 0, "closed early");
        }
    };
    timeout(LONG, reading).await.expect("a response");
    String::from_utf8(bytes).expect("text")
}

/// Everything until the end of the connection.
async fn rest_of(client: &mut TcpStream) -> String {
    let mut text = String::new();
    // A reset is an end, too.
    let _ = timeout(LONG, client.read_to_string(&mut text)).await.expect("an end");
    text
}

/// Whoever fills the port must not keep the operator out.
#[tokio::test]
async fn a_full_port_leaves_places_for_this_machine() {
    let place = std::env::temp_dir().join(format!("hearth-edge-near-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("made");
    let local = LocalListener::bind(&place, "a.sock").expect("bound");
    let limits = ServerLimits { connections: 2, ..ServerLimits::default() };
    let lab = Lab::with(limits, Some(local)).await;
    let mut others = Vec::new();
    for _ in 0..10 {
        others.push(lab.send(HELD).await);
    }
    lab.until_running(2).await;
    for _ in 0..3 {
        let mut near = UnixStream::connect(place.join("a.sock")).await.expect("connect");
        near.write_all(GET.as_bytes()).await.expect("send");
        one_of(&mut near).await;
    }
    std::fs::remove_dir_all(&place).expect("removed");
}

#[tokio::test]
async fn the_connection_that_was_idle_longest_gives_way() {
    let lab = Lab::with_connections(3).await;
    let mut oldest = lab.idle().await;
    let mut older = lab.idle().await;
    let mut young = lab.idle().await;
    // Used again, it is the youngest.
    oldest.write_all(GET.as_bytes()).await.expect("send");
    one_of(&mut oldest).await;

    let mut new = lab.idle().await;
    assert_eq!(rest_of(&mut older).await, "");
    for client in [&mut oldest, &mut young, &mut new] {
        client.write_all(GET.as_bytes()).await.expect("send");
        assert!(one_of(client).await.contains(" 200 "), "it kept its place");
    }
}

#[tokio::test]
async fn a_head_that_is_not_complete_gives_way() {
    let lab = Lab::with_connections(1).await;
    let mut slow = lab.send("GET / HTTP/1.1\r\nhost: a\r\nx-slow").await;
    lab.idle().await;
    assert!(!rest_of(&mut slow).await.contains(" 200 "));
}

#[tokio::test]
async fn a_request_in_progress_keeps_its_place_until_it_is_answered() {
    let lab = Lab::with_connections(2).await;
    let mut held = lab.send(HELD).await;
    lab.until_running(1).await;
    let mut body = lab.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhal").await;
    lab.until_running(2).await;
    let mut new = lab.send(GET).await;
    // The one who waits is served as soon as another has nothing to do, and closes it.
    body.write_all(b"f!").await.expect("send");
    assert!(one_of(&mut body).await.contains(" 200 "));
    assert!(one_of(&mut new).await.contains(" 200 "));
    assert_eq!(rest_of(&mut body).await, "");
    lab.handler.permits.add_permits(1);
    assert!(one_of(&mut held).await.contains(" 200 "));
}

#[tokio::test]
async fn a_response_that_is_not_read_yet_is_not_idle() {
    let lab = Lab::with_connections(1).await;
    let mut reader = lab.send("GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    lab.until_running(1).await;
    let mut new = lab.send(GET).await;
    let text = rest_of(&mut reader).await;
    assert!(text.len() > 64 << 20, "all of it: {}", text.len());
    one_of(&mut new).await;
}

#[tokio::test]
async fn many_more_clients_than_places_are_all_served() {
    let lab = Lab::with_connections(100).await;
    let mut clients = Vec::new();
    for _ in 0..1000 {
        clients.push(lab.idle().await);
    }
    assert_eq!(lab.handler.answered.load(Ordering::Relaxed), 1000);
}

#[tokio::test]
async fn a_head_with_length_and_encoding_is_refused_before_it_runs() {
    let lab = Lab::with_connections(10).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let rest = format!("0\r\n\r\n{smuggled}");
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 5",
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\n\r\n{rest}");
        let mut client = lab.send(&request).await;
        let text = rest_of(&mut client).await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{headers}: {text}");
        // Also on a connection that was used before.
        let mut client = lab.idle().await;
        client.write_all(request.as_bytes()).await.expect("send");
        let text = rest_of(&mut client).await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{headers}: {text}");
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "and nothing else was answered");
    }
    assert_eq!(lab.handler.answered.load(Ordering::Relaxed), 3, "the ones before");
}

#[tokio::test]
async fn a_pipelined_head_with_length_and_encoding_is_the_last_one() {
    let lab = Lab::with_connections(10).await;
    let both = "content-length: 5\r\ntransfer-encoding: chunked";
    let second = format!("POST / HTTP/1.1\r\nhost: a\r\n{both}\r\n\r\n0\r\n\r\n");
    let mut client = lab.send(&format!("{GET}{second}{GET}")).await;
    let text = rest_of(&mut client).await;
    assert_eq!(text.matches("HTTP/1.1 200 ").count(), 2, "{text}");
    assert_eq!(lab.handler.answered.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_chunked_body_is_read() {
    let lab = Lab::with_connections(10).await;
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = "11\r\ncontent-length: 4\r\n0\r\n\r\n";
    let mut client = lab.send(&format!("{chunked}{body}")).await;
    assert!(one_of(&mut client).await.contains(" 200 "));
}

#[tokio::test]
async fn whoever_comes_while_calls_are_finished_is_told() {
    let lab = Lab::with_connections(10).await;
    let mut held = lab.send(HELD).await;
    lab.until_running(1).await;
    lab.stop.notify_one();
    let late = async {
        loop {
            let mut client = lab.send(GET).await;
            let text = rest_of(&mut client).await;
            if text.contains("late") {
                return text;
            }
        }
    };
    let text = timeout(LONG, late).await.expect("once it stops");
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("connection: close"), "{text}");
    lab.handler.permits.add_permits(1);
    assert!(one_of(&mut held).await.contains(" 200 "), "it was finished");
    timeout(LONG, lab.server).await.expect("it ends").expect("no panic");
    TcpStream::connect(lab.address).await.expect_err("nobody listens");
}

#[tokio::test]
async fn tls_is_told_that_this_is_plain_http() {
    let lab = Lab::with_connections(10).await;
    let mut client = TcpStream::connect(lab.address).await.expect("connect");
    // How a handshake begins: a record with version 3.1 and 512 bytes.
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(517, 0x5a);
    client.write_all(&hello).await.expect("send");
    let text = rest_of(&mut client).await;
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("plain HTTP"), "{text}");
    assert_eq!(lab.handler.running.load(Ordering::Relaxed), 0);
    // The same byte later is no TLS, and no HTTP either.
    let mut client = lab.idle().await;
    client.write_all(&[0x16]).await.expect("send");
    client.write_all(GET.as_bytes()).await.expect("send");
    let text = rest_of(&mut client).await;
    assert!(text.starts_with("HTTP/1.1 400 ") && !text.contains("plain HTTP"), "{text}");
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_loses_its_connection() {
    // Long enough that such a client takes something, and far more than it takes, so that the test
    // does not depend on the machine.
    let write_timeout = Duration::from_secs(1);
    let limits = ServerLimits { write_timeout, write_rate: u32::MAX, ..ServerLimits::default() };
    let lab = Lab::new(limits).await;
    let mut client = lab.send("GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (mut total, mut piece) = (0, vec![0; 64 << 10]);
    let reading = async {
        while let Ok(read @ 1..) = client.read(&mut piece).await {
            total += read;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, reading).await.expect("an end");
    assert!(total < 64 << 20, "{total} bytes: it always took some, and not enough");
}
