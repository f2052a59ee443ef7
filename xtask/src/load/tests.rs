//! The generator against servers of a few lines.

use std::{net::TcpListener, thread};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// Answers each request with the next of `replies`, the last one for good; an empty one closes.
fn serve(replies: &'static [&'static [u8]]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    thread::spawn(move || {
        let mut turn = 0;
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; REQUEST.len()];
            while stream.read_exact(&mut request).is_ok() {
                let reply = replies[turn.min(replies.len() - 1)];
                turn += 1;
                if reply.is_empty() || stream.write_all(reply).is_err() {
                    break;
                }
            }
        }
    });
    address
}

fn plan(address: SocketAddr, pace: Pace) -> Plan {
    Plan {
        address,
        requests: vec![REQUEST.to_vec()],
        connections: 1,
        duration: Duration::from_millis(50),
        pace,
        core: None,
    }
}

#[test]
fn a_healthy_server_gets_requests_one_after_the_other() {
    let outcome = run(&plan(serve(&[OK]), Pace::Closed)).expect("reachable");
    assert!(outcome.latencies.count() > 1);
    assert_eq!(outcome.failures, Failures::default());
}

#[test]
fn requests_take_turns() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; REQUEST.len()];
        let mut seen = String::new();
        while stream.read_exact(&mut request).is_ok() {
            seen.push(char::from(request[5]));
            stream.write_all(OK).expect("a reader");
        }
        seen
    });
    let request = |path: &str| format!("GET /{path} HTTP/1.1\r\nhost:x\r\n\r\n").into_bytes();
    let requests = vec![request("a"), request("b")];
    let pace = Pace::AtOnce { requests: 5 };
    let outcome = run(&Plan { requests, ..plan(address, pace) }).expect("reachable");
    assert_eq!(server.join().expect("no panic"), "ababa");
    assert_eq!(outcome.latencies.count(), 5, "and no more");
}

#[test]
fn an_open_loop_sends_what_its_timetable_holds() {
    let pace = Pace::Open { per_second: 200.0 };
    let outcome = run(&plan(serve(&[OK]), pace)).expect("reachable");
    assert_eq!(outcome.latencies.count(), 10);
    assert_eq!(outcome.failures, Failures::default());
}

#[test]
fn every_kind_of_failure_is_counted_and_survived() {
    let replies: &[&[u8]] =
        &[b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", b"", b"nonsense\r\n\r\n", OK];
    let outcome = run(&plan(serve(replies), Pace::Closed)).expect("reachable");
    let expected = Failures { status: 1, connection: 1, malformed: 1, unanswered: 0 };
    assert_eq!(outcome.failures, expected);
    assert!(outcome.latencies.count() > 0, "and it goes on");
}

#[test]
fn a_server_that_says_nothing_leaves_requests_unanswered() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let pace = Pace::Open { per_second: 100.0 };
    let outcome = run(&plan(address, pace)).expect("the kernel accepts");
    assert_eq!(outcome.latencies.count(), 0);
    assert_eq!(outcome.failures.unanswered, 5, "one in flight, four behind it");
}

#[test]
fn nobody_listening_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    drop(listener);
    let error = run(&plan(address, Pace::Closed)).expect_err("refused");
    assert!(error.to_string().contains("connect to"), "{error:#}");
}
