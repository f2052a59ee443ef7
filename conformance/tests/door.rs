//! The front door with the administration behind it, from outside.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::mpsc,
    thread,
    time::Duration,
};

use conformance::{
    client::{Request, Response},
    flavour::Flavour,
    platform::{Options, Platform, fixture, request},
    wait,
};

/// Every route that takes the token.
const GUARDED: [(&str, &str); 7] = [
    ("GET", "/v1/functions"),
    ("GET", "/v1/functions/door"),
    ("DELETE", "/v1/functions/door"),
    ("POST", "/v1/functions/door/deployments"),
    ("GET", "/v1/functions/door/logs"),
    ("GET", "/v1/instances"),
    ("GET", "/v1/status"),
];

fn with_function() -> Platform {
    let platform = Platform::new();
    platform.deploy("door", &fixture(&Flavour::any().runtime), &[]);
    platform
}

fn send(platform: &Platform, request: &Request) -> Response {
    platform.connect().call(request).expect("a response")
}

fn to_admin(method: &str, target: &str) -> Request {
    Request::new(method, target).header("host", "127.0.0.1")
}

#[test]
fn no_route_of_the_api_answers_without_the_token() {
    let platform = with_function();
    let token = platform.token();
    let wrong: Vec<String> = vec![
        "Bearer".into(),
        "Bearer ".into(),
        "Bearer wrong-wrong-wrong-wrong".into(),
        format!("Bearer {}", &token[..token.len() - 1]),
        format!("Bearer {token}x"),
        format!("Bearer {}", token.to_uppercase()),
        format!("Basic {token}"),
        token.clone(),
    ];
    let mut admitted = Vec::new();
    for (method, target) in GUARDED {
        let mut check = |request: Request, how: &str| {
            let response = send(&platform, &request);
            if response.status() != 401 || response.text().contains("fn/door") {
                admitted.push(format!("{method} {target} with {how}: {}", response.status()));
            }
        };
        check(to_admin(method, target), "nothing");
        check(to_admin(method, &format!("{target}?token={token}")), "a query");
        for value in &wrong {
            check(to_admin(method, target).header("authorization", value), value);
        }
    }
    assert!(admitted.is_empty(), "{admitted:#?}");
    assert_eq!(platform.call("door", "/").status(), 200, "it was not removed");
    assert_eq!(platform.api("GET", "/v1/functions").status(), 200);
}

#[test]
fn the_host_of_a_function_never_leads_to_the_api() {
    let platform = with_function();
    let bearer = format!("Bearer {}", platform.token());
    let targets = [
        "/v1/functions",
        "//v1/functions",
        "/./v1/functions",
        "/../v1/functions",
        "/%2e%2e/v1/functions",
        "/v1/../v1/functions",
        "/v1%2ffunctions",
        "/fn/../v1/functions",
        "/fn/door/../../v1/functions",
        "/metrics",
        "/healthz",
    ];
    for host in ["door.localhost", "DOOR.LOCALHOST", "door.localhost.", "door.localhost:80"] {
        for target in targets {
            for authorization in [None, Some(&bearer)] {
                let mut asked = Request::new("GET", target).header("host", host);
                if let Some(bearer) = authorization {
                    asked = asked.header("authorization", bearer);
                }
                let answer = send(&platform, &asked);
                let is_function = answer.json()["path"].is_string();
                assert!(is_function || answer.status() >= 400, "{host} {target}: {answer:?}");
                assert!(!answer.text().contains("cold_starts"), "{host} {target}");
            }
        }
    }
}

#[test]
fn no_path_leads_around_the_token() {
    let platform = with_function();
    for target in [
        "//v1/functions",
        "/v1//functions",
        "/./v1/functions",
        "/v1/./functions",
        "/V1/functions",
        "/v1/functions/",
        "/v1/functions/door/",
        "/fn/../v1/functions",
        "/fn/door/../../v1/functions",
        "/fn/%2e%2e/v1/functions",
        "/healthz/../v1/functions",
        "/openapi.json/../v1/status",
        "/v1/functions%00",
        "/v1/functions;x",
        "http://127.0.0.1/v1/functions",
        "http://door.localhost/v1/functions",
    ] {
        let answer = send(&platform, &to_admin("GET", target));
        let text = answer.text();
        let is_function = answer.json()["path"].is_string();
        assert!(is_function || answer.status() >= 400, "{target}: {text}");
        assert!(!text.contains("cold_starts") && !text.contains("uptime"), "{target}: {text}");
    }
    // Two hosts, or an absolute target that says something else than the header.
    let twice = b"GET /v1/functions HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: door.localhost\r\n\r\n";
    let mut connection = platform.connect();
    connection.send(twice).expect("send");
    assert_eq!(connection.response().expect("a response").status(), 400);
}

#[test]
fn a_function_does_not_see_the_token_nor_speak_for_the_daemon() {
    let platform = with_function();
    let seen = platform.call("door", "/look").text();
    assert!(!seen.contains(&platform.token()));
    let asked = request("door", "/echo").header("x-hearth-call", "forged");
    let answer = send(&platform, &asked);
    assert_ne!(answer.head.one("x-hearth-call"), Some("forged"));
}

#[test]
fn the_token_is_nowhere_to_be_read() {
    let platform = with_function();
    let token = platform.token();
    for _ in 0..3 {
        platform.call("door", "/sleep?ms=1");
    }
    let wrong = platform.prepared(&["ls"]).env("HEARTH_TOKEN", "0123456789abcdef").output();
    let wrong = wrong.expect("hearth runs");
    assert_eq!(wrong.status.code(), Some(77), "{}", String::from_utf8_lossy(&wrong.stderr));
    let told = [
        platform.said(),
        platform.api("GET", "/v1/status").text(),
        platform.api("GET", "/v1/functions/door").text(),
        platform.api("GET", "/v1/functions/door/logs").text(),
        send(&platform, &to_admin("GET", "/metrics")).text(),
        platform.process().command_line(),
    ];
    for text in told {
        assert!(!text.contains(&token), "{text}");
    }
    let mut grep = std::process::Command::new("grep");
    let found = grep.args(["--recursive", "--files-with-matches", &token]).arg(platform.data());
    let found = found.output().expect("`grep` is on every system").stdout;
    let found = String::from_utf8_lossy(&found).into_owned();
    assert_eq!(found.trim(), platform.data().join("token").display().to_string());
}

#[test]
fn values_of_variables_are_told_to_nobody_but_the_function() {
    const SECRET: &str = "a-value-that-is-secret";
    let platform = Platform::new();
    let variable = format!("KEY={SECRET}");
    platform.deploy("secret", &fixture(&Flavour::any().runtime), &["--env", &variable]);
    assert_eq!(platform.call("secret", "/look").json()["environment"]["KEY"], SECRET);
    let told = [
        platform.said(),
        platform.api("GET", "/v1/functions").text(),
        platform.api("GET", "/v1/functions/secret").text(),
        platform.command(&["show", "secret"]).output,
        platform.command(&["logs", "secret"]).output,
    ];
    for text in told {
        assert!(!text.contains(SECRET), "{text}");
    }
    let mode = std::fs::metadata(platform.data()).expect("its data").permissions().mode();
    assert_eq!(mode & 0o077, 0, "nobody else looks into the data: {mode:o}");
}

#[test]
fn anybody_may_ask_whether_it_is_well() {
    let platform = with_function();
    for target in ["/healthz", "/readyz"] {
        let answer = send(&platform, &to_admin("GET", target));
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ok\n"), "{target}");
    }
    platform.call("door", "/");
    let metrics = send(&platform, &to_admin("GET", "/metrics")).text();
    assert!(metrics.contains("function=\"door\"") && metrics.contains("# EOF"), "{metrics}");
    let proxied = to_admin("GET", "/metrics").header("x-forwarded-for", "203.0.113.7");
    assert_eq!(send(&platform, &proxied).status(), 401);
    let document = send(&platform, &to_admin("GET", "/openapi.json")).json();
    let paths = document["paths"].as_object().expect("a description of paths");
    for (_, target) in GUARDED {
        let path = target.replace("/door", "/{name}");
        assert!(paths.contains_key(&path), "{path} is described");
    }
}

/// Takes what is sent to it, and answers that all is well.
fn receiver() -> (u16, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (sender, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            thread::spawn(move || take(stream, &sender));
        }
    });
    (port, received)
}

fn take(mut stream: TcpStream, sender: &mpsc::Sender<Vec<u8>>) {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
    let mut all = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(&buffer[..read]);
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = sender.send(all);
}

#[test]
fn spans_of_calls_arrive_at_a_collector() {
    let (port, received) = receiver();
    let endpoint = format!("http://127.0.0.1:{port}");
    let options = Options::default().variable("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    let platform = Platform::start(options);
    platform.deploy("traced", &fixture(&Flavour::any().runtime), &[]);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let asked = request("traced", "/").header("traceparent", &parent);
    assert_eq!(send(&platform, &asked).status(), 200);
    let mut bytes = Vec::new();
    wait::until("the spans have arrived", || {
        bytes.extend(received.try_iter().flatten());
        let text = String::from_utf8_lossy(&bytes);
        text.contains("/v1/traces") && text.contains("traced")
    });
    let id: Vec<u8> = (0..16)
        .map(|at| u8::from_str_radix(&trace[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect();
    let has_trace = bytes.windows(16).any(|window| window == id)
        || String::from_utf8_lossy(&bytes).contains(trace);
    assert!(has_trace, "the client's trace goes on");
}

#[test]
fn a_collector_that_is_not_there_costs_no_calls() {
    let options = Options::default().variable("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    let platform = Platform::start(options);
    platform.deploy("alone", &fixture(&Flavour::any().runtime), &[]);
    for _ in 0..20 {
        assert_eq!(platform.call("alone", "/").status(), 200);
    }
}
