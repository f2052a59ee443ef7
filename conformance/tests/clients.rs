//! Clients without a password, clients that go away, and what becomes of their calls.

use std::net::TcpStream;

use conformance::{
    client::Request,
    flavour::Flavour,
    on_each_runtime,
    platform::{Options, Platform, fixture, request},
    wait,
};

/// Few enough that idle connections take them all within a moment.
const FEW_DESCRIPTORS: u64 = 256;

fn deployed(flavour: &Flavour, flags: &[&str]) -> Platform {
    let platform = Platform::new();
    platform.deploy("asked", &fixture(&flavour.runtime), flags);
    platform
}

/// The last line of the only call of its path.
fn end_of(platform: &Platform, path: &str) -> serde_json::Value {
    let mut found = None;
    wait::until("the call is in the log", || {
        let mut log = platform.log("asked").into_iter();
        found = log.find(|line| line["event"] == "end" && line["path"] == path);
        found.is_some()
    });
    found.expect("waited for")
}

fn micros(end: &serde_json::Value) -> u64 {
    let phases = end["phases"].as_array().expect("phases");
    phases.iter().filter_map(serde_json::Value::as_u64).sum()
}

on_each_runtime! {
    fn a_stream_that_is_timed_out_says_so_and_took_its_time(flavour: &Flavour) {
        let platform = deployed(flavour, &["--timeout", "1s"]);
        let invoked = platform.command(&["invoke", "asked", "--path", "/stream"]);
        assert_eq!(invoked.code, Some(1), "{}", invoked.errors);
        assert!(invoked.output.starts_with("piece\n"), "what there was is printed");
        for expected in ["within its timeout", "hearth logs asked --call "] {
            assert!(invoked.errors.contains(expected), "{expected}: {}", invoked.errors);
        }
        let end = end_of(&platform, "/stream");
        assert_eq!((end["outcome"].as_str(), end["status"].as_u64()), (Some("timed-out"), Some(200)));
        assert!(micros(&end) >= 900_000, "{end}");
    }

    fn a_client_that_resets_its_connection_cancels_its_call(flavour: &Flavour) {
        let platform = deployed(flavour, &[]);
        let mut call = platform.connect();
        // The reply to the first one, unread, turns the end of the connection into a reset.
        let requests = [request("asked", "/"), request("asked", "/sleep?ms=14000")];
        call.send(&requests.map(|request| request.bytes()).concat()).expect("send");
        wait::until("the function has said that it began", || {
            platform.logged("asked").contains(&"began".to_owned())
        });
        drop(call);
        let end = end_of(&platform, "/sleep");
        assert_eq!(end["outcome"], "cancelled", "{end}");
        assert!(micros(&end) > 0, "it ran until then: {end}");
    }
}

#[test]
fn idle_connections_leave_descriptors_for_deploys() {
    let options = Options::default().descriptors(FEW_DESCRIPTORS);
    let platform = Platform::start(options);
    wait::until("it says how few connections are kept", || {
        platform.said().contains("connections are kept open at once")
    });
    let idle: Vec<_> = (0..2 * FEW_DESCRIPTORS)
        .filter_map(|_| TcpStream::connect(platform.address()).ok())
        .collect();
    platform.deploy("asked", &fixture(&Flavour::any().runtime), &[]);
    assert_eq!(platform.call("asked", "/").status(), 200);
    assert!(idle.len() as u64 > FEW_DESCRIPTORS, "more than there are descriptors for");
}

#[test]
fn names_that_are_not_the_daemons_own_get_no_administration() {
    let platform = deployed(Flavour::any(), &[]);
    for (target, host, expected) in [
        ("/metrics", "127.0.0.1", 200),
        ("/metrics", "localhost:8080", 200),
        ("/metrics", "rebound.example", 421),
        ("/openapi.json", "rebound.example", 421),
        ("/v1/status", "rebound.example", 421),
        ("/readyz", "rebound.example", 200),
        ("/fn/asked", "rebound.example", 200),
    ] {
        let request = Request::new("GET", target).header("host", host);
        let response = platform.connect().call(&request).expect("a response");
        assert_eq!(response.status(), expected, "{target} {host}: {}", response.text());
    }
    let request = Request::new("GET", "/metrics").header("host", "localhost");
    let request = request.header("sec-fetch-site", "cross-site");
    assert_eq!(platform.connect().call(&request).expect("a response").status(), 403);
}

#[test]
fn while_calls_are_finished_a_daemon_says_that_it_is_not_ready() {
    let platform = deployed(Flavour::any(), &[]);
    let mut running = platform.connect();
    running.send(&request("asked", "/sleep?ms=8000").bytes()).expect("send");
    wait::until("the call runs", || platform.load("asked", "in_flight") == 1);
    platform.signal("TERM");
    let ask = |request: &Request| platform.connect().call(request).expect("a response");
    let ready = Request::new("GET", "/readyz").header("host", "127.0.0.1");
    wait::until("it says so", || ask(&ready).status() == 503);
    let refused = ask(&request("asked", "/"));
    assert_eq!((refused.status(), refused.head.one("retry-after")), (503, Some("1")));
    assert_eq!(running.response().expect("a response").status(), 200, "it was finished");
    assert!(platform.wait_for_exit().success());
}
