//! The server around a backend in memory: what connections may cost, and how it ends.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use host::{Backend, EnforcedHeaders, HostConfig, Logs, Secret, Server, ServerLimits};
use protocol::{Body, Call, CallError, Reply};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

const LONG: Duration = Duration::from_secs(20);

/// `/hang` never answers, `/large` answers with more than any buffer holds; anything else says
/// `hello`. Counts calls that are running.
#[derive(Default)]
struct Memory {
    running: AtomicUsize,
}

struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Backend for Memory {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.running.fetch_add(1, Ordering::Relaxed);
        let _running = Running(&self.running);
        if call.head.path == "/hang" {
            return pending().await;
        }
        let body = match call.head.path.as_str() {
            "/large" => Body::whole(vec![b'x'; 64 << 20]),
            _ => Body::whole("hello"),
        };
        Ok(Reply { status: 200, headers: vec![], body })
    }
}

struct Lab {
    address: SocketAddr,
    backend: Arc<Memory>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Lab {
    async fn new(limits: ServerLimits) -> Self {
        let address = ([127, 0, 0, 1], 0).into();
        let server = Server::bind(address, limits).await.expect("a free port");
        let address = server.address().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let backend = Arc::new(Memory::default());
        let config = HostConfig {
            secret: Secret::default(),
            enforced: EnforcedHeaders::default(),
            is_development: false,
            logs: Logs::Discarded,
            telemetry: None,
            body_timeout: Duration::from_millis(50),
            half_closed_grace: Duration::from_millis(50),
        };
        let running = server.run(config, backend.clone(), async { drop(stopped.await) });
        Self { address, backend, stop, server: tokio::spawn(running) }
    }

    async fn send(&self, bytes: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.expect("connect");
        client.write_all(bytes.as_bytes()).await.expect("send");
        client
    }

    /// Returns once this many calls run.
    async fn until_running(&self, calls: usize) {
        let reached = async {
            while self.backend.running.load(Ordering::Relaxed) != calls {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, reached).await.expect("in far less time");
    }
}

fn limits() -> ServerLimits {
    ServerLimits { drain_timeout: Duration::from_millis(100), ..ServerLimits::default() }
}

async fn all_of(mut client: TcpStream) -> String {
    let mut text = String::new();
    timeout(LONG, client.read_to_string(&mut text)).await.expect("an end").expect("text");
    text
}

#[tokio::test]
async fn a_call_that_does_not_end_does_not_keep_the_server_from_ending() {
    let lab = Lab::new(limits()).await;
    let client = lab.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    lab.until_running(1).await;
    lab.stop.send(()).expect("it runs");
    timeout(LONG, lab.server).await.expect("it ends").expect("no panic");
    assert_eq!(lab.backend.running.load(Ordering::Relaxed), 0, "the call went with it");
    assert_eq!(all_of(client).await, "");
}

#[tokio::test]
async fn whoever_comes_while_calls_are_finished_is_told() {
    let lab = Lab::new(ServerLimits { drain_timeout: LONG, ..limits() }).await;
    let running = lab.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    lab.until_running(1).await;
    lab.stop.send(()).expect("it runs");
    for path in ["/", "/__opr/health"] {
        let told = async {
            loop {
                let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
                let mut client = TcpStream::connect(lab.address).await.expect("it listens");
                client.write_all(head.as_bytes()).await.expect("send");
                let text = all_of(client).await;
                if text.starts_with("HTTP/1.1 503 ") {
                    return text;
                }
            }
        };
        let text = timeout(LONG, told).await.expect("once it stops");
        assert!(text.contains("retry-after: 1\r\n"), "{text}");
    }
    drop(running);
    timeout(LONG, lab.server).await.expect("it ends").expect("no panic");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let head_timeout = Duration::from_millis(50);
    let lab = Lab::new(ServerLimits { head_timeout, ..limits() }).await;
    let slow = lab.send("GET / HTTP/1.1\r\nhost: a\r\nx-sl").await;
    let idle = lab.send("").await;
    assert!(!all_of(slow).await.contains("200"));
    assert_eq!(all_of(idle).await, "");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered() {
    let lab = Lab::new(limits()).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\nconnection: close\r\n\r\nhalf";
    let reply = all_of(lab.send(head).await).await;
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
}

#[tokio::test]
async fn a_client_that_has_closed_its_side_is_waited_for_and_no_longer() {
    let lab = Lab::new(limits()).await;
    let mut quick = lab.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    quick.shutdown().await.expect("half-closed");
    assert!(all_of(quick).await.ends_with("hello"));

    let mut hanging = lab.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    lab.until_running(1).await;
    hanging.shutdown().await.expect("half-closed");
    lab.until_running(0).await;
}

#[tokio::test]
async fn a_client_that_breaks_its_connection_cancels_its_call() {
    let lab = Lab::new(limits()).await;
    let client = lab.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    lab.until_running(1).await;
    drop(client);
    lab.until_running(0).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let lab = Lab::new(ServerLimits { connections: 1, ..limits() }).await;
    let first = lab.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    lab.until_running(1).await;
    let second = lab.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    drop(first);
    assert!(all_of(second).await.ends_with("hello"), "served once there was a place");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_connection() {
    let write_timeout = Duration::from_millis(50);
    let lab = Lab::new(ServerLimits { connections: 1, write_timeout, ..limits() }).await;
    let _deaf = lab.send("GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let second = lab.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(all_of(second).await.ends_with("hello"), "its place is free again");
}
