//! What calls see when a function does its worst: a reply with a reason, and then service as usual.

use std::io::Write;

use conformance::{
    client::{Connection, Request, Response},
    flavour::Flavour,
    on_each_runtime,
    process::Process,
    server::{self, Server, Settings},
    wait,
};
use serde_json::json;

const WAITING: &str = "innocent";

/// A call that waits in the function.
fn wait_in_function(server: &Server) -> Connection {
    let mut connection = server.connect();
    let script = json!([["log", "began"], ["wait", WAITING], ["reply", "text", "done"]]);
    connection.send(&Request::script(&script).bytes()).expect("send");
    server.call(&Request::at_gate("reached", WAITING));
    connection
}

fn assert_lost(server: &Server, response: &Response) {
    assert_eq!(response.status(), 503, "{}", response.text());
    let reason = response.text();
    assert!(!reason.is_empty(), "a call that was lost is told why");
    let (_, errors) = server.log_of(response);
    assert!(errors.contains(&reason), "{errors:?} says why, too: {reason:?}");
}

fn assert_serves(server: &Server) {
    let response = server.call(&Request::script(&json!([["reply", "text", "fine"]])));
    assert_eq!((response.status(), response.text().as_str()), (200, "fine"));
}

/// Breaks a worker while two calls are in it. Returns the reply to the call that broke it.
fn break_worker(flavour: &Flavour, settings: &Settings, action: &str) -> Response {
    let server = Server::start(flavour, settings);
    let mut innocent = wait_in_function(&server);
    let guilty = server.call(&Request::action(action));
    assert_lost(&server, &guilty);
    let innocent = innocent.response().expect("a response");
    assert_lost(&server, &innocent);
    assert_eq!(server.log_of(&innocent).0, "began\n", "what was logged before is kept");
    assert_serves(&server);
    guilty
}

on_each_runtime! {
    fn an_endless_loop_ends_with_its_time(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::default());
        let mut innocent = wait_in_function(&server);
        let spin = Request::action("spin").header("x-open-runtimes-timeout", "1");
        let response = server.call(&spin);
        assert_eq!((response.status(), response.body.len()), (500, 0));
        assert_eq!(server.log_of(&response).1, "Execution timed out.\n");

        server.call(&Request::at_gate("open", WAITING));
        let innocent = innocent.response().expect("a response");
        if innocent.status() == 200 {
            assert_eq!(innocent.text(), "done");
        } else {
            assert_lost(&server, &innocent);
        }
        assert_serves(&server);
    }

    fn a_worker_that_exits_is_replaced(flavour: &Flavour) {
        let response = break_worker(flavour, &Settings::default(), "exit");
        assert!(response.text().contains('3'), "the exit code is named: {}", response.text());
    }

    fn a_worker_that_sends_garbage_is_replaced(flavour: &Flavour) {
        break_worker(flavour, &Settings::default(), "garble");
    }

    fn a_worker_that_takes_too_much_memory_is_replaced(flavour: &Flavour) {
        if server::adapter() != "sandbox" {
            let _ = writeln!(std::io::stderr(), "skipped: memory: only `sandbox` limits it");
            return;
        }
        let response = break_worker(flavour, &Settings::with(["--memory", "64MiB"]), "hoard");
        assert!(response.text().contains("memory"), "{}", response.text());
    }

    fn a_worker_that_is_killed_is_replaced(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::with(["--spares", "0"]));
        let mut innocent = wait_in_function(&server);
        kill_workers(&server);
        assert_lost(&server, &innocent.response().expect("a response"));
        assert_serves(&server);
    }

    fn a_worker_that_is_killed_when_idle_is_replaced(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::default());
        for _ in 0..3 {
            kill_workers(&server);
            assert_serves(&server);
        }
    }
}

/// A queue has a size, and an answer for when it is full.
#[test]
fn one_call_too_many_is_told_so() {
    const MOST_CALLS: usize = 1024;
    let Some(flavour) = Flavour::of("node") else { return };
    let server = Server::start(flavour, &Settings::default());
    let script = json!([["wait", "full"], ["reply", "text", "done"]]);
    let mut waiting: Vec<Connection> = Vec::new();
    let refused = loop {
        let mut connection = server.connect();
        connection.send(&Request::script(&script).bytes()).expect("send");
        waiting.push(connection);
        if waiting.len() < MOST_CALLS {
            continue;
        }
        let response = server.call(&Request::action("entrypoint"));
        if response.status() == 503 {
            break response;
        }
        assert!(waiting.len() < 2 * MOST_CALLS, "calls are accepted without a bound");
    };
    assert!(refused.text().contains(&MOST_CALLS.to_string()), "{}", refused.text());
    drop(waiting);
    wait::until("there is room again", || {
        server.call(&Request::action("entrypoint")).status() == 200
    });
}

fn kill_workers(server: &Server) {
    let workers = server.workers();
    assert!(!workers.is_empty(), "hearth has a worker");
    for worker in &workers {
        worker.signal("KILL");
    }
    wait::until("nothing is left of the workers", || workers.iter().all(Process::is_gone));
}
