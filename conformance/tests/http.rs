//! The HTTP side: what is accepted, what is refused, and that one client is no trouble to others.
//!
//! Not here: the limits in time for slow clients. They are half a minute and more, and no setting
//! makes them shorter.

use std::{fs, io::Write};

use conformance::{
    client::{ACTION, Connection, Request, Response},
    flavour::Flavour,
    server::Server,
};
use serde_json::json;

const MAX_BODY: usize = 20 << 20;

fn server() -> std::sync::Arc<Server> {
    Server::usual(Flavour::any())
}

fn reply(text: &str) -> Request {
    Request::script(&json!([["reply", "text", text]]))
}

fn assert_serves(server: &Server) {
    assert_eq!(server.call(&reply("fine")).text(), "fine");
}

#[test]
fn a_connection_carries_many_calls() {
    let server = server();
    let mut connection = server.connect();
    for text in ["one", "two", "three"] {
        assert_eq!(connection.call(&reply(text)).expect("a response").text(), text);
    }
}

#[test]
fn calls_in_one_write_are_answered_in_order() {
    let server = server();
    let mut connection = server.connect();
    let texts = ["one", "two", "three"];
    let written: Vec<u8> = texts.iter().flat_map(|text| reply(text).bytes()).collect();
    connection.send(&written).expect("send");
    for text in texts {
        assert_eq!(connection.response().expect("a response").text(), text);
    }
}

#[test]
fn a_call_in_many_writes_is_one_call() {
    let server = server();
    let mut connection = server.connect();
    for byte in reply("whole").bytes() {
        connection.send(&[byte]).expect("send");
    }
    assert_eq!(connection.response().expect("a response").text(), "whole");
}

#[test]
fn a_reply_to_head_has_the_headers_of_get_and_nothing_else() {
    let server = server();
    let mut connection = server.connect();
    let request = Request::new("HEAD", "/").header(ACTION, "entrypoint");
    let head = connection.call(&request).expect("a response").head;
    assert_eq!(head.status, 200);
    assert_eq!(head.one("content-type"), Some("text/plain; charset=utf-8"));
    let next = connection.call(&reply("next")).expect("the connection is still in step");
    assert_eq!(next.text(), "next");
}

#[test]
fn a_client_that_wants_no_more_replies_gets_none() {
    let server = server();
    let mut connection = server.connect();
    let last = reply("last").header("connection", "close").bytes();
    connection.send(&[last, reply("never").bytes()].concat()).expect("send");
    assert_eq!(connection.response().expect("a response").text(), "last");
    connection.wait_for_close().expect("nothing follows");
}

#[test]
fn a_client_that_has_closed_its_sending_side_gets_its_answer() {
    let server = server();
    let mut connection = server.connect();
    connection.send(&reply("still here").bytes()).expect("send");
    connection.finish_sending().expect("half-close");
    assert_eq!(connection.response().expect("a response").text(), "still here");
}

#[test]
fn the_old_version_is_answered_and_closed() {
    let server = server();
    let mut connection = server.connect();
    connection.send(b"GET / HTTP/1.0\r\nx-action: entrypoint\r\n\r\n").expect("send");
    let response = connection.response().expect("a response");
    assert_eq!((response.status(), response.head.all("transfer-encoding")), (200, vec![]));
    connection.wait_for_close().expect("that was all");
}

fn assert_too_large(response: &Response) {
    assert_eq!(response.status(), 413);
    assert!(response.text().contains("20 MiB"), "{}", response.text());
}

fn send_chunked(connection: &mut Connection, size: usize) {
    const CHUNK: usize = 1 << 20;
    let head =
        "POST / HTTP/1.1\r\nhost: a\r\nx-action: body length\r\ntransfer-encoding: chunked\r\n\r\n";
    connection.send(head.as_bytes()).expect("send");
    let piece = vec![b'x'; CHUNK];
    let mut left = size;
    while left > 0 {
        let length = left.min(CHUNK);
        connection.send(format!("{length:x}\r\n").as_bytes()).expect("send");
        connection.send(&piece[..length]).expect("send");
        connection.send(b"\r\n").expect("send");
        left -= length;
    }
    connection.send(b"0\r\n\r\n").expect("send");
}

#[test]
fn a_body_in_chunks_has_the_same_limit() {
    let server = server();
    for (size, is_accepted) in [(MAX_BODY, true), (MAX_BODY + 1, false)] {
        let mut connection = server.connect();
        send_chunked(&mut connection, size);
        let response = connection.response().expect("an answer, not a reset");
        if is_accepted {
            assert_eq!(response.text(), size.to_string());
        } else {
            assert_too_large(&response);
        }
    }
}

fn asking_first(size: usize) -> Vec<u8> {
    let request = Request::new("POST", "/").header(ACTION, "body length");
    let request = request.header("content-length", &size.to_string());
    request.header("expect", "100-continue").bytes()
}

#[test]
fn a_client_that_asks_first_may_go_on() {
    let server = server();
    let mut connection = server.connect();
    connection.send(&asking_first(3)).expect("send");
    assert_eq!(connection.head().expect("an interim response").status, 100);
    connection.send(b"abc").expect("send");
    assert_eq!(connection.response().expect("a response").text(), "3");
}

#[test]
fn a_client_that_asks_first_for_too_much_need_not_send_it() {
    let server = server();
    let mut connection = server.connect();
    connection.send(&asking_first(MAX_BODY + 1)).expect("send");
    assert_too_large(&connection.response().expect("a final response at once"));
}

/// Requests whose end is in doubt. Each is followed by another, which must not be answered.
const AMBIGUOUS: [(&str, &str); 15] = [
    ("a length and chunks", "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("chunks and a length", "transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n"),
    ("two lengths", "content-length: 0\r\ncontent-length: 4\r\n\r\n"),
    ("two lengths in one", "content-length: 0, 4\r\n\r\n"),
    ("a length with a sign", "content-length: +0\r\n\r\n"),
    ("a length below nothing", "content-length: -1\r\n\r\n"),
    ("a length with a unit", "content-length: 0x0\r\n\r\n"),
    ("a folded header", "x-folded: a\r\n b\r\n\r\n"),
    ("a space before a colon", "content-length : 0\r\n\r\n"),
    ("a control character in a value", "x-null: a\0b\r\n\r\n"),
    ("a return within a value", "x-return: a\rb\r\n\r\n"),
    ("another last coding", "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("an unknown coding", "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("a size that is none", "transfer-encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n"),
    ("a chunk longer than its size", "transfer-encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n"),
];

#[test]
fn a_request_whose_end_is_in_doubt_is_refused() {
    let server = server();
    let mut accepted = Vec::new();
    for (shape, rest) in AMBIGUOUS {
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\nx-action: body length\r\n{rest}");
        let mut connection = server.connect();
        connection.send(&[request.as_bytes(), &reply("smuggled").bytes()].concat()).expect("send");
        // Closing without a word is a refusal, too.
        let Ok(response) = connection.response() else { continue };
        // RFC 9112, 6.1: chunks may win over a length if nothing else is read afterwards.
        let is_settled = response.status() == 400 || rest.contains("chunked");
        if !is_settled || connection.wait_for_close().is_err() {
            accepted.push(format!("{shape}: {} {}", response.status(), response.text()));
        }
    }
    assert!(accepted.is_empty(), "{}", accepted.join("\n"));
    assert_serves(&server);
}

/// RFC 9112, 2.2 allows a bare line feed to end a line. It must not be part of a value then, and
/// what follows must not be taken for a second request.
#[test]
fn a_bare_line_feed_ends_a_line_or_is_refused() {
    let server = server();
    let mut connection = server.connect();
    let head = b"GET / HTTP/1.1\r\nhost: a\r\nx-bare: a\ncontent-length: 28\n\n";
    connection.send(head).expect("send");
    connection.send(b"GET /second HTTP/1.1\r\na: b\r\n").expect("send");
    connection.finish_sending().expect("half-closed");
    if let Ok(response) = connection.response() {
        assert!([200, 400].contains(&response.status()), "{}", response.status());
    }
    assert!(connection.response().is_err(), "the second line of requests was a body");
}

#[test]
fn what_is_no_http_is_refused() {
    let server = server();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\xffT / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut connection = server.connect();
        connection.send(bytes).expect("send");
        if let Ok(response) = connection.response() {
            assert_eq!(response.status(), 400, "{:?}", String::from_utf8_lossy(bytes));
        }
        connection.wait_for_close().expect("there is no going on");
    }
    assert_serves(&server);
}

#[test]
fn a_huge_head_is_refused() {
    let server = server();
    let huge = Request::action("request").header("x-huge", &"x".repeat(1 << 20));
    assert_eq!(server.call(&huge).status(), 431);
    assert_serves(&server);
}

/// The limits of `docs/protocols/worker.md`: 64 KiB and 100 headers.
#[test]
fn a_head_may_be_as_large_as_is_documented_and_no_larger() {
    let server = server();
    let with_headers = |count: usize| {
        let names = (0..count).map(|serial| format!("x-{serial}"));
        names.fold(Request::action("request"), |request, name| request.header(&name, "v"))
    };
    let of_size = |size| Request::action("request").header("x-large", &"x".repeat(size));
    let mut wrong = Vec::new();
    for (what, request, expected) in [
        ("60 KiB", of_size(60 << 10), 200),
        ("80 KiB", of_size(80 << 10), 431),
        ("90 headers", with_headers(90), 200),
        ("110 headers", with_headers(110), 431),
    ] {
        let status = server.call(&request).status();
        if status != expected {
            wrong.push(format!("{what}: {status}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

#[test]
fn a_thousand_idle_connections_do_not_disturb_a_call() {
    const IDLE: usize = 1000;
    if open_files_limit() < 2 * IDLE {
        let _ = writeln!(std::io::stderr(), "skipped: a thousand connections: `ulimit -n` is low");
        return;
    }
    let server = server();
    let idle: Vec<_> = (0..IDLE)
        .map(|serial| {
            let mut connection = server.connect();
            // Some have said nothing, some a part.
            if serial % 2 == 0 {
                connection.send(b"GET / HTTP/1.1\r\nhost:").expect("send");
            }
            connection
        })
        .collect();
    assert_serves(&server);
    drop(idle);
    assert_serves(&server);
}

fn open_files_limit() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_client_that_leaves_within_a_request_is_no_trouble() {
    let server = server();
    for length in 1..reply("never").bytes().len() {
        let mut connection = server.connect();
        connection.send(&reply("never").bytes()[..length]).expect("send");
    }
    assert_serves(&server);
}
