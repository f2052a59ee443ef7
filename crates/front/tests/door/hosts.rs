//! Which host a request is for, however it says so.

use edge::ServerLimits;
use front::{DoorConfig, OwnNames};

use crate::{
    lab::{Lab, body, status},
    paths::answered_by,
};

#[tokio::test]
async fn a_host_name_selects_a_function_and_nothing_else() {
    let lab = Lab::new().await;
    for (target, host, expected) in [
        ("/", "a.localhost", "a /"),
        ("/fn/b", "a.localhost", "a /fn/b"),
        ("/v1/functions", "a.localhost", "a /v1/functions"),
        ("/x", "a.localhost:8080", "a /x"),
        ("/x", "a.localhost.", "a /x"),
        ("/x", "a.localhost.:8080", "a /x"),
        ("/x", "A.LOCALHOST", "a /x"),
        // Below the domain there is no administration.
        ("/v1/functions", "unknown.localhost", "404"),
        ("/v1/functions", "a.b.localhost", "404"),
        ("/fn/a", "a.b.localhost", "404"),
        ("/v1/functions", ".localhost", "404"),
        ("/fn/a", "a_b.localhost", "404"),
        ("/", "%61.localhost", "404"),
        // Elsewhere there is.
        ("/v1/functions", "localhost", "admin"),
        ("/v1/functions", "localhost:8080", "admin"),
        ("/v1/functions", "127.0.0.1:8080", "admin"),
        ("/v1/functions", "[::1]:8080", "admin"),
        ("/fn/a", "[::1]", "a /"),
        ("/v1/functions", "a.localhost.example", "admin"),
        ("/v1/functions", "alocalhost", "admin"),
        // The target's authority counts, and the header is ignored.
        ("http://a.localhost/x", "b.localhost", "a /x"),
        ("http://a.localhost", "localhost", "a /"),
        ("http://A.localhost.:80/x", "localhost", "a /x"),
        ("http://localhost/v1/functions", "a.localhost", "admin"),
        ("http://localhost/fn/a/x", "b.localhost", "a /x"),
        // Nobody's.
        ("/", "user@a.localhost", "400"),
        ("/", "a.localhost/x", "400"),
        ("/", "a.localhost#", "400"),
        ("/", "a.localhost:x", "400"),
        ("/", "a.localhost b.localhost", "400"),
        ("/", "[a.localhost]", "400"),
        ("/", "[::1", "400"),
        ("http://user@a.localhost/", "a.localhost", "400"),
        ("http://user:secret@a.localhost/", "a.localhost", "400"),
        ("http:///x", "a.localhost", "400"),
    ] {
        let response = lab.get(target, host).await;
        assert_eq!(answered_by(&response), expected, "{target:?} {host:?}: {response}");
    }
}

#[tokio::test]
async fn administration_is_asked_for_by_its_own_names_and_functions_by_any() {
    let own_names = OwnNames { hosts: Some(vec!["shop.example".into()]), public: None };
    let config = DoorConfig { own_names, ..DoorConfig::default() };
    let lab = Lab::with(ServerLimits::default(), config).await;
    for (target, host, expected) in [
        ("/metrics", "localhost:8080", "admin"),
        ("/metrics", "shop.example", "admin"),
        ("/metrics", "evil.example", "421"),
        ("http://evil.example/metrics", "localhost", "421"),
        ("/fn/a", "evil.example", "a /"),
    ] {
        let response = lab.get(target, host).await;
        assert_eq!(answered_by(&response), expected, "{target:?} {host:?}: {response}");
    }
    let page = "host: localhost\r\norigin: https://evil.example\r\nconnection: close\r\n\r\n";
    for (target, expected) in [("/v1/status", 403), ("/fn/a", 200)] {
        let response = lab.ask(format!("GET {target} HTTP/1.1\r\n{page}")).await;
        assert_eq!(status(&response), expected, "{target}");
    }
}

#[tokio::test]
async fn exactly_one_host_is_named() {
    let lab = Lab::new().await;
    let ask = async |head: &str| {
        let request = format!("{head}connection: close\r\n\r\n");
        status(&lab.ask(request).await)
    };
    assert_eq!(ask("GET /fn/a HTTP/1.1\r\n").await, 400);
    assert_eq!(ask("GET /fn/a HTTP/1.1\r\nhost: x\r\nhost: x\r\n").await, 400);
    assert_eq!(ask("GET / HTTP/1.1\r\nhost: a.localhost\r\nHost: localhost\r\n").await, 400);
    assert_eq!(ask("GET http://localhost/fn/a HTTP/1.1\r\n").await, 400);
    assert_eq!(ask("GET /fn/a HTTP/1.1\r\nhost:\r\n").await, 200);
    assert_eq!(lab.called(), 1);
    // Before HTTP/1.1 nobody had to say.
    let old = lab.ask("GET /fn/a HTTP/1.0\r\n\r\n").await;
    assert!(old.contains(" 200 ") && old.contains("function: a"), "{old}");
}

#[tokio::test]
async fn what_is_not_for_an_origin_server_is_refused() {
    let lab = Lab::new().await;
    let connect = "CONNECT a.localhost:80 HTTP/1.1\r\nhost: a.localhost:80\r\n\r\n";
    assert_eq!(status(&lab.ask(connect).await), 405);
    let asterisk = "OPTIONS * HTTP/1.1\r\nhost: a.localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(status(&lab.ask(asterisk).await), 400);
    assert_eq!(lab.called(), 0);
}

#[tokio::test]
async fn a_function_sees_the_host_it_was_called_by() {
    let lab = Lab::new().await;
    let response = lab.get("http://A.localhost:8080/x?y", "b.localhost").await;
    let text = body(&response);
    for expected in
        ["GET http://A.localhost:8080/x?y\n", "host: A.localhost:8080\n", "x-forwarded-for: 127."]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[tokio::test]
async fn an_upgrade_is_not_offered_to_functions() {
    let lab = Lab::new().await;
    let request = "GET /fn/a HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\n\
                   upgrade: websocket\r\nx-hearth-timing: 1\r\nx-hearth-forged: 1\r\n\r\n";
    let response = lab.ask(request).await;
    assert_eq!(status(&response), 200);
    for hidden in ["upgrade", "x-hearth-"] {
        assert!(!body(&response).contains(hidden), "{hidden}: {response}");
    }
}
