//! Logs: whose they are, and when they are there.

use std::{collections::HashSet, fs, sync::Barrier, thread};

use conformance::{
    client::{Request, Response},
    flavour::Flavour,
    on_each_runtime,
    server::{Server, Settings},
};
use serde_json::json;

const NOTICE: &str =
    "Native logs detected. Use context.log() or context.error() for better experience.\n";
const CALLS: usize = 50;

fn speaking(name: &str, gate: &str) -> Request {
    let [before, after] = ["before", "after"].map(|when| format!("{name} {when}"));
    Request::script(&json!([
        ["print", before],
        ["log", before],
        ["error", before],
        ["wait", gate],
        ["print", after],
        ["log", after],
        ["error", after],
        ["reply", "text", name],
    ]))
}

/// Fifty calls that are all there at once: none goes on before the last has begun.
fn speak_at_once(server: &Server) -> Vec<(String, Response)> {
    let all_sent = Barrier::new(CALLS + 1);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..CALLS)
            .map(|serial| {
                let all_sent = &all_sent;
                scope.spawn(move || {
                    let (name, gate) = (format!("call-{serial:02}"), format!("crowd {serial}"));
                    let mut connection = server.connect();
                    connection.send(&speaking(&name, &gate).bytes()).expect("send");
                    let waits = server.call(&Request::at_gate("reached", &gate));
                    assert_eq!(waits.status(), 204);
                    all_sent.wait();
                    assert_eq!(server.call(&Request::at_gate("open", &gate)).status(), 204);
                    (name, connection.response().expect("a response"))
                })
            })
            .collect();
        all_sent.wait();
        calls.into_iter().map(|call| call.join().expect("a call")).collect()
    })
}

on_each_runtime! {
    fn calls_at_once_keep_their_logs_apart(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::default());
        for (name, response) in speak_at_once(&server) {
            assert_eq!(response.text(), name);
            let (logs, errors) = server.log_of(&response);
            let expected = format!(
                "{NOTICE}{name} before\n{name} before\n{name} after\n{name} after\n"
            );
            assert_eq!(logs, expected);
            assert_eq!(errors, format!("{name} before\n{name} after\n"));
        }
    }

    fn files_are_complete_when_the_reply_arrives_under_ids_of_their_own(flavour: &Flavour) {
        let server = Server::usual(flavour);
        let mut connection = server.connect();
        let mut ids = HashSet::new();
        for serial in 0..1000 {
            let text = format!("{serial} {}", "x".repeat(serial));
            let script = json!([["log", text], ["print", text], ["error", text], ["reply", "empty"]]);
            let response = connection.call(&Request::script(&script)).expect("a response");
            let expected = (format!("{text}\n{NOTICE}{text}\n"), format!("{text}\n"));
            assert_eq!(server.log_of(&response), expected);
            let id = response.log_id().expect("a log id").to_owned();
            assert_eq!(id.len(), 20);
            assert!(ids.insert(id), "an id was used twice");
        }
    }

    fn what_a_call_logs_after_its_time_is_dropped(flavour: &Flavour) {
        let server = Server::usual(flavour);
        let late = speaking("late", "late").header("x-open-runtimes-timeout", "1");
        let response = server.call(&late);
        assert_eq!((response.status(), response.body.len()), (500, 0));
        server.call(&Request::at_gate("open", "late"));
        server.call(&Request::script(&json!([["reply", "empty"]])));
        let (logs, errors) = server.log_of(&response);
        assert_eq!(logs, format!("{NOTICE}late before\nlate before\n"));
        assert_eq!(errors, "late before\nExecution timed out.\n");
    }
}

#[test]
fn refused_calls_leave_no_files() {
    let secret = [("OPEN_RUNTIMES_SECRET".to_owned(), "right".to_owned())];
    let settings = Settings { environment: secret.into(), ..Settings::default() };
    let server = Server::start(Flavour::any(), &settings);
    for (name, value) in [
        ("x-open-runtimes-secret", "wrong"),
        ("x-open-runtimes-timeout", "abcd"),
        ("x-open-runtimes-log-id", "../outside"),
    ] {
        let request = Request::action("request").header(name, value);
        let response = match name {
            "x-open-runtimes-secret" => server.call(&request),
            _ => server.call(&request.header("x-open-runtimes-secret", "right")),
        };
        assert!(response.status() >= 400, "{name}");
    }
    assert_eq!(fs::read_dir(server.log_directory()).expect("a folder").count(), 0);
}

#[test]
fn a_call_cannot_fill_the_disk() {
    const MOST: usize = 5 << 20;
    const NOTE: &str = "... Log cut: a call may write 5 MiB.\n";
    let server = Server::usual(Flavour::any());
    let line = "x".repeat(8000);
    let mut script: Vec<_> = (0..MOST / line.len() + 10).map(|_| json!(["log", line])).collect();
    script.push(json!(["error", "other file"]));
    script.push(json!(["reply", "empty"]));
    let response = server.call(&Request::script(&script.into()));
    let (logs, errors) = server.log_of(&response);
    assert!(logs.len() <= MOST + NOTE.len() && logs.ends_with(NOTE), "{} bytes", logs.len());
    assert_eq!(errors, "other file\n");
}

#[test]
fn a_log_id_that_is_used_again_has_a_log_that_grows() {
    let server = Server::usual(Flavour::any());
    let call = |text: &str| {
        let script = json!([["log", text], ["reply", "empty"]]);
        server.call(&Request::script(&script).header("x-open-runtimes-log-id", "again"))
    };
    call("one");
    assert_eq!(server.log_of(&call("two")).0, "one\ntwo\n");
}
