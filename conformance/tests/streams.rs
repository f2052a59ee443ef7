//! Replies that are sent while the function still makes them.

use conformance::{
    client::{Connection, Request},
    flavour::Flavour,
    on_each_runtime,
    server::{Server, Settings},
    wait,
};
use serde_json::json;

const PIECES: u64 = 4096;
/// What sockets, the host and the worker may hold of a reply that nobody reads.
const MOST_HELD: u64 = 32 << 20;

fn produced(server: &Server) -> u64 {
    server.call(&Request::action("produced")).json().as_u64().expect("a number")
}

/// Starts a flood, reads its head, and waits until it stands still.
fn dam(server: &Server, gate: &str) -> Connection {
    let mut connection = server.connect();
    connection.send(&Request::at_gate("flood", gate).bytes()).expect("send");
    assert_eq!(connection.head().expect("a head").status, 200);
    let (mut last, mut unchanged) = (0, 0);
    wait::until("the function makes no more pieces", || {
        let now = produced(server);
        unchanged = if now == last { unchanged + 1 } else { 0 };
        last = now;
        unchanged == 20
    });
    connection
}

on_each_runtime! {
    fn the_first_piece_arrives_before_the_function_ends(flavour: &Flavour) {
        let server = Server::usual(flavour);
        let mut connection = server.connect();
        connection.send(&Request::at_gate("stream", "piece").bytes()).expect("send");
        let head = connection.head().expect("a head");
        assert_eq!(head.one("transfer-encoding"), Some("chunked"));
        assert_eq!(connection.chunk().expect("a piece").as_deref(), Some(&b"first\n"[..]));
        server.call(&Request::at_gate("open", "piece"));
        assert_eq!(connection.chunk().expect("a piece").as_deref(), Some(&b"second\n"[..]));
        assert_eq!(connection.chunk().expect("the end"), None);
    }

    fn a_function_is_held_back_by_a_client_that_does_not_read(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::default());
        let before = server.process().resident();
        let mut connection = dam(&server, "held");
        let made = produced(&server);
        assert!(made * 65536 < MOST_HELD, "the function made {made} of {PIECES} pieces");
        let grown = server.process().resident().saturating_sub(before);
        assert!(grown < MOST_HELD, "the daemon holds {grown} bytes more");

        let mut received = 0;
        while let Some(chunk) = connection.chunk().expect("a piece") {
            received += chunk.len() as u64;
        }
        assert_eq!(received, PIECES * 65536, "nothing is lost");
    }

    fn a_client_that_goes_away_ends_the_stream(flavour: &Flavour) {
        let server = Server::usual(flavour);
        drop(dam(&server, "left"));
        let ended = server.call(&Request::at_gate("reached", "left"));
        assert_eq!(ended.status(), 204, "the function's generator was closed");
        assert!(produced(&server) < PIECES);
    }

    fn a_silent_stream_ends_with_its_client(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::with(["--fresh", "--spares", "0"]));
        let mut connection = server.connect();
        connection.send(&Request::at_gate("stream", "silent").bytes()).expect("send");
        connection.head().expect("a head");
        connection.chunk().expect("a piece");
        drop(connection);
        wait::until("the call's instance is gone", || server.workers().is_empty());
    }
}

#[test]
fn a_client_that_goes_away_stops_a_call_that_can_be_stopped() {
    let Some(flavour) = Flavour::of("python") else { return };
    let server = Server::usual(flavour);
    let mut connection = server.connect();
    let waiting = json!([["wait", "deserted"], ["reply", "empty"]]);
    let first = Request::action("entrypoint").bytes();
    connection.send(&[first, Request::script(&waiting).bytes()].concat()).expect("send");
    server.call(&Request::at_gate("reached", "deserted"));
    // The first reply, unread, turns the end of the connection into a reset: the client is gone.
    drop(connection);
    let left = server.call(&Request::at_gate("reached", "deserted left"));
    assert_eq!(left.status(), 204, "the call was stopped where it waited");
}

#[test]
fn a_reply_to_head_does_not_wait_for_a_stream() {
    let server = Server::usual(Flavour::any());
    let mut connection = server.connect();
    let request = Request::new("HEAD", "/").header("x-action", "stream").header("x-gate", "head");
    connection.send(&request.bytes()).expect("send");
    assert_eq!(connection.head().expect("a head").status, 200);
}
