//! The client against a daemon of canned answers.

use std::sync::{Arc, Mutex};

use api::{DeployEvent, DeployRequest, LogQuery};
use client::{
    Client, ClientError, Invocation, Method, Source, StatusCode, Token, header::HeaderMap,
};
use model::FunctionName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Answers each request with what is meant for its path, and keeps what it was sent.
struct Stub {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

const PROBLEM: &str = r#"{"error": {"code": "unknown-function", "message": "no such function"}}"#;

impl Stub {
    /// `routes`: how a request begins, and the answer from its status on.
    async fn start(routes: &'static [(&'static str, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let request = read_request(&mut stream).await;
                let route = routes.iter().find(|(start, _)| request.starts_with(start));
                let answer = route.map_or("404 Not Found\r\n\r\n", |(_, answer)| answer);
                seen.lock().expect("no panic").push(request);
                let answer = format!("HTTP/1.1 {}", answer.replace("\n\n", "\r\n\r\n"));
                let (head, body) = answer.split_once("\r\n\r\n").expect("an empty line");
                let head = format!("{head}\r\nconnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.expect("write");
                // Piece by piece: lines must not depend on how they arrive.
                for piece in body.as_bytes().chunks(7) {
                    // Who was refused a handshake has gone.
                    let _ = stream.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
            }
        });
        Self { url, requests }
    }

    fn client(&self) -> Client {
        let token = Token::new("change-me").expect("a token");
        Client::new(&self.url, Some(token)).expect("a client")
    }

    fn request(&self, index: usize) -> String {
        self.requests.lock().expect("no panic")[index].clone()
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut buffer).await.expect("read");
        request.extend_from_slice(&buffer[..read]);
        // A TLS handshake, which is answered like a request.
        if request.first() == Some(&0x16) {
            return String::new();
        }
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().expect("a number"));
        if body.len() >= length || read == 0 {
            return text.into_owned();
        }
    }
}

fn name(name: &str) -> FunctionName {
    name.parse().expect("a name")
}

fn get(path: &str) -> Invocation {
    Invocation { method: Method::GET, path: path.into(), headers: HeaderMap::new(), body: None }
}

fn function(name: &str) -> String {
    format!(
        r#"{{"name":"{name}","url":"u","active":null,"deployments":[],"settings":{{"environment":[],
        "timeout":"15s","memory_bytes":1,"cpus":1.0,"network":"none","concurrency":1,"min":0,
        "max":1,"idle":"5m"}},"load":{{"name":"{name}","starting":0,"serving":0,"in_flight":0,
        "waiting":0,"calls":0,"errors":0,"busy_micros":0,"cold_starts":0,"trouble":null}},
        "created_at":0,"updated_at":0}}"#
    )
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[tokio::test]
async fn requests_carry_the_token_and_calls_of_functions_do_not() {
    let one = leak(format!("200 OK\n\n[{}]", function("hello")));
    let routes = vec![("GET /v1/functions ", one), ("GET /fn/hello/x?y=1", "200 OK\n\nhi")];
    let stub = Stub::start(routes.leak()).await;
    let functions = stub.client().functions().await.expect("answered");
    assert_eq!(functions[0].name, "hello");
    assert!(stub.request(0).contains("authorization: Bearer change-me"));
    let mut reply = stub.client().invoke(&name("hello"), get("/x?y=1")).await.expect("answered");
    let mut body = Vec::new();
    while let Some(chunk) = reply.chunk().await.expect("whole") {
        body.extend_from_slice(&chunk);
    }
    assert_eq!(body, b"hi");
    assert!(!stub.request(1).contains("change-me"), "{}", stub.request(1));
}

#[tokio::test]
async fn no_daemon_is_said_with_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let client = Client::new(&url, None).expect("a client");
    let error = client.status().await.expect_err("nobody listens");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    for part in [url.as_str(), "refused", "hearth up", "HEARTH_URL"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn tls_to_a_daemon_without_is_told_as_that() {
    let stub = Stub::start(&[("", "400 Bad Request\n\nThis port speaks plain HTTP.")]).await;
    let url = stub.url.replace("http://", "https://");
    let client = Client::new(&url, None).expect("a client");
    for error in [
        client.status().await.map(drop).expect_err("no TLS"),
        client.invoke(&name("a"), get("/")).await.map(drop).expect_err("no TLS"),
    ] {
        assert!(matches!(error, ClientError::NoTls { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("speaks http, not https") && text.contains(&url), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_token_is_told_from_a_missing_one() {
    let stub = Stub::start(&[("GET", "401 Unauthorized\n\n")]).await;
    let wrong = stub.client().status().await.expect_err("refused").to_string();
    assert!(wrong.contains("does not accept") && wrong.contains("HEARTH_TOKEN"), "{wrong}");
    let client = Client::new(&stub.url, None).expect("a client");
    let missing = client.status().await.expect_err("refused").to_string();
    assert!(missing.contains("wants a token") && missing.contains("HEARTH_TOKEN"), "{missing}");
}

#[tokio::test]
async fn an_unknown_function_comes_with_names_like_it() {
    let all = leak(format!("200 OK\n\n[{},{}]", function("hello"), function("resize")));
    let problem = leak(format!("404 Not Found\n\n{PROBLEM}"));
    let with_id = "x-hearth-call: 1\nx-hearth-error: unknown-function";
    let new = leak(format!("404 Not Found\n{with_id}\n\n{PROBLEM}"));
    let routes = vec![
        ("GET /v1/functions ", all),
        ("GET /v1/functions/helo", problem),
        ("DELETE /v1/functions/helo", problem),
        ("GET /fn/helo/new", new),
        ("GET /fn/helo", problem),
    ];
    let stub = Stub::start(routes.leak()).await;
    let (client, helo) = (stub.client(), name("helo"));
    let errors = [
        client.function(&helo).await.map(drop).expect_err("unknown"),
        client.remove(&helo).await.expect_err("unknown"),
        client.logs(&helo, &LogQuery::default()).await.map(drop).expect_err("unknown"),
        client.invoke(&helo, get("/")).await.map(drop).expect_err("unknown"),
        client.invoke(&helo, get("/new")).await.map(drop).expect_err("unknown"),
    ];
    for error in errors {
        assert_eq!(error.to_string(), "no function `helo`; did you mean `hello`?");
    }
}

#[tokio::test]
async fn a_functions_own_404_is_a_reply() {
    let own = leak(format!("404 Not Found\nx-hearth-call: 1\n\n{PROBLEM}"));
    let routes = vec![("GET /fn/a/", own), ("GET /fn/b/", "404 Not Found\n\nno page")];
    let stub = Stub::start(routes.leak()).await;
    for (function, expected) in [("a", PROBLEM), ("b", "no page")] {
        let mut reply = stub.client().invoke(&name(function), get("/")).await.expect("a reply");
        assert_eq!(reply.status(), StatusCode::NOT_FOUND);
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await.expect("whole") {
            body.extend_from_slice(&chunk);
        }
        assert_eq!(String::from_utf8_lossy(&body), expected);
    }
}

#[tokio::test]
async fn a_refusal_is_the_daemons_own_words() {
    let stub = Stub::start(&[
        (
            "GET /v1/status",
            r#"503 Unavailable
x: y

{"error": {"code": "full", "message": "the disk is full"}}"#,
        ),
        ("GET /v1/instances", "502 Bad Gateway\n\n<html>"),
        ("GET /v1/functions ", "200 OK\n\n<html>"),
        ("GET /v1/functions/a", "200 OK\n\n{}"),
        ("DELETE /v1/functions/a", "307 Temporary Redirect\nlocation: /elsewhere\n\n"),
    ])
    .await;
    let client = stub.client();
    let refused = client.status().await.expect_err("refused");
    assert_eq!(refused.to_string(), "the disk is full");
    let gateway = client.instances().await.expect_err("a gateway");
    assert!(matches!(gateway, ClientError::NotHearth { status: 502, .. }), "{gateway:?}");
    let page = client.functions().await.expect_err("a page");
    assert!(matches!(page, ClientError::NotHearth { status: 200, .. }), "{page:?}");
    let other = client.function(&name("a")).await.expect_err("not a function");
    assert!(matches!(other, ClientError::Malformed(_)), "{other:?}");
    let redirect = client.remove(&name("a")).await.expect_err("a token follows no redirect");
    assert!(matches!(redirect, ClientError::NotHearth { status: 307, .. }), "{redirect:?}");
}

#[tokio::test]
async fn a_deployment_is_sent_in_two_parts_and_told_line_by_line() {
    let stub = Stub::start(&[(
        "POST /v1/functions/hello/deployments",
        r#"200 OK
x-hearth-deployment: 0193

{"event":"step","step":"build"}

{"event":"output","text":"grüße\n"}
{"event":"failed","step":"build","message":"no"}"#,
    )])
    .await;
    let request = DeployRequest { runtime: Some("node".into()), ..DeployRequest::default() };
    let source = Source { archive: &b"the archive"[..], bytes: 11 };
    let deploying = stub.client().deploy(&name("hello"), &request, source).await;
    let mut deploying = deploying.expect("accepted");
    assert_eq!(deploying.id.as_deref(), Some("0193"));
    let mut events = Vec::new();
    while let Some(event) = deploying.events.next().await.expect("a line") {
        events.push(event);
    }
    let text = |text: &str| text.to_owned();
    assert_eq!(
        events,
        [
            DeployEvent::Step { step: text("build") },
            DeployEvent::Output { text: text("grüße\n") },
            DeployEvent::Failed { step: text("build"), message: text("no") },
        ]
    );
    let sent = stub.request(0);
    for part in [r#"name="settings""#, r#""runtime":"node""#, r#"name="source""#, "the archive"] {
        assert!(sent.contains(part), "{part}: {sent}");
    }
    assert!(!sent.contains("transfer-encoding"), "the size is known: {sent}");
}

#[tokio::test]
async fn a_deployment_is_cancelled_unless_it_is_over() {
    const OVER: &str = r#"404 Not Found

{"error": {"code": "unknown-deployment", "message": "it may be over"}}"#;
    let stub = Stub::start(&[
        ("DELETE /v1/functions/hello/deployments/1", "202 Accepted\n\n"),
        ("DELETE /v1/functions/hello/deployments/2", OVER),
    ])
    .await;
    let (client, hello) = (stub.client(), name("hello"));
    assert!(client.cancel_deployment(&hello, "1").await.expect("told"));
    assert!(!client.cancel_deployment(&hello, "2").await.expect("told"));
}

#[tokio::test]
async fn a_log_query_says_only_what_was_asked_for() {
    let line = r#"{"at":1,"event":"note","text":"cut"#;
    let routes = vec![("GET", leak(format!("200 OK\n\n{line}")))];
    let stub = Stub::start(routes.leak()).await;
    let query = LogQuery { since: Some(5), follow: true, ..LogQuery::default() };
    let mut lines = stub.client().logs(&name("a"), &query).await.expect("answered");
    assert!(stub.request(0).starts_with("GET /v1/functions/a/logs?since=5&follow=true HTTP"));
    let cut = lines.next().await.expect_err("half a line");
    assert!(matches!(cut, ClientError::Malformed(_)), "{cut:?}");
}

#[test]
fn urls_of_daemons_are_plain() {
    for url in ["", "localhost:8080", "ftp://a", "http://u:p@a", "http://a/?q", "http://a/#f"] {
        let error = Client::new(url, None).map(drop).expect_err(url);
        assert!(matches!(error, ClientError::Url { .. }), "{url}: {error:?}");
    }
    for (url, expected) in [
        ("http://127.0.0.1:8080", true),
        ("http://[::1]:1", true),
        ("http://localhost/below/", true),
        ("http://hello.localhost", true),
        ("http://localhost.example", false),
        ("http://10.0.0.1", false),
    ] {
        assert_eq!(Client::new(url, None).expect(url).is_local(), expected, "{url}");
    }
}

/// A machine may have no certificates; that must not be a panic.
#[tokio::test]
async fn tls_is_there() {
    match Client::new("https://127.0.0.1:1", None) {
        Ok(client) => {
            let error = client.status().await.expect_err("nobody listens");
            assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
        }
        Err(error) => assert!(matches!(error, ClientError::Setup { .. }), "{error:?}"),
    }
}

#[tokio::test]
async fn a_local_daemon_is_reached_through_its_directory_and_nobody_elses() {
    use std::{fs, os::unix::fs::PermissionsExt};

    let root = std::env::temp_dir().join(format!("hearth-client-{}", std::process::id()));
    let directory = root.join("d".repeat(120));
    fs::create_dir_all(&directory).expect("made");
    let token = || Some(Token::new("change-me").expect("a token"));
    let error = Client::local(&directory, token()).expect_err("nobody listens");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("daemon.sock"), "{error}");

    // Bound by a short name, and moved to where it belongs.
    let listener = tokio::net::UnixListener::bind(root.join("s")).expect("bound");
    fs::rename(root.join("s"), directory.join("daemon.sock")).expect("moved");
    let served = tokio::spawn(async move {
        // The first connection only asks who listens.
        drop(listener.accept().await.expect("accepted"));
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut request = vec![0; 4096];
        let read = stream.read(&mut request).await.expect("read");
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n[]";
        stream.write_all(answer).await.expect("written");
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    let client = Client::local(&directory, token()).expect("its owner listens");
    assert_eq!(client.functions().await.expect("answered"), []);
    let request = served.await.expect("no panic").to_lowercase();
    assert!(request.contains("authorization: bearer change-me"), "{request}");

    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("opened");
    let error = Client::local(&directory, token()).expect_err("anybody's socket");
    assert!(matches!(error, ClientError::OpenDirectory { mode: 0o777, .. }), "{error}");
    fs::remove_dir_all(&root).expect("removed");
}
