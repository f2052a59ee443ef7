//! From start to end: of servers, and of instances.

use std::{collections::HashSet, fs, path::PathBuf};

use conformance::{
    client::{Connection, Request},
    flavour::Flavour,
    on_each_runtime,
    process::{Process, directories_of},
    server::{Scratch, Server, Settings},
    wait,
};
use serde_json::json;

fn waiting_call(server: &Server) -> Connection {
    let mut connection = server.connect();
    let script = json!([["wait", "running"], ["reply", "text", "finished"]]);
    connection.send(&Request::script(&script).bytes()).expect("send");
    server.call(&Request::at_gate("reached", "running"));
    connection
}

/// Returns once whoever asks now is told to go elsewhere.
fn takes_no_more(server: &Server) {
    let health = Request::new("GET", "/__opr/health");
    wait::until("new calls are refused", || {
        let mut connection = Connection::open(server.address()).expect("an answer");
        connection.call(&health).expect("an answer").status() == 503
    });
}

fn assert_nothing_left(pid: u32, family: &[Process]) {
    wait::until("no process is left", || !family.iter().any(Process::is_alive));
    assert_eq!(directories_of(pid), Vec::<PathBuf>::new());
}

on_each_runtime! {
    fn a_signal_lets_running_calls_finish_and_leaves_nothing_behind(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::default());
        // On connections that are open already: new ones are told to go from the signal on.
        let mut other = server.connect();
        let opened = Request::at_gate("open", "running");
        let mut connection = waiting_call(&server);
        let half = opened.bytes();
        other.send(&half[..half.len() - 2]).expect("send");
        let family = server.process().descendants();
        assert!(!directories_of(server.pid()).is_empty(), "it has directories as long as it runs");

        server.process().signal("TERM");
        takes_no_more(&server);
        other.send(&half[half.len() - 2..]).expect("send");
        assert_eq!(connection.response().expect("a response").text(), "finished");
        let status = server.wait_for_exit();
        assert_eq!(status.code(), Some(0));
        assert_nothing_left(server.pid(), &family);
    }

    fn a_second_signal_ends_at_once_and_leaves_nothing_behind(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::default());
        let mut connection = waiting_call(&server);
        let family = server.process().descendants();
        server.process().signal("INT");
        takes_no_more(&server);
        server.process().signal("TERM");
        server.wait_for_exit();
        assert!(connection.response().is_err(), "the call was given up");
        assert_nothing_left(server.pid(), &family);
    }

    fn a_start_removes_what_a_killed_one_left(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::default());
        let family = server.process().descendants();
        server.process().signal("KILL");
        server.wait_for_exit();
        let pid = server.pid();

        let next = Server::start(flavour, &Settings::default());
        assert_nothing_left(pid, &family);
        assert_eq!(next.call(&Request::action("entrypoint")).status(), 200);
    }

    fn servers_live_side_by_side(flavour: &Flavour) {
        let names = ["one", "two", "three"];
        let servers = names.map(|name| {
            Server::start(flavour, &Settings::with(["--env", &format!("NAME={name}")]))
        });
        for (name, server) in names.iter().zip(&servers) {
            let environment = server.call(&Request::action("environment")).json();
            assert_eq!(environment["NAME"], *name);
        }
        let [first, second, third] = servers;
        drop(first);
        for server in [second, third] {
            assert_eq!(server.call(&Request::action("environment")).status(), 200);
        }
    }

    fn an_instance_serves_many_calls(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::default());
        let served = |_| server.call(&Request::action("served")).json().as_u64().expect("a count");
        assert_eq!((0..3).map(served).collect::<Vec<_>>(), [1, 2, 3]);
    }

    fn a_fresh_instance_serves_one_call(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::with(["--fresh"]));
        for _ in 0..5 {
            assert_eq!(server.call(&Request::action("served")).text(), "1");
        }
    }

    fn fresh_instances_end_with_their_calls(flavour: &Flavour) {
        let server = Server::start(flavour, &Settings::with(["--fresh", "--spares", "0"]));
        server.call(&Request::action("served"));
        wait::until("no worker is left", || server.workers().is_empty());
    }
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let server = Server::start(Flavour::any(), &Settings::default());
    let mut used = server.connect();
    used.call(&Request::action("entrypoint")).expect("a response");
    let mut unused = server.connect();
    // A connection that waits to be accepted would be refused instead of closed.
    server.call(&Request::action("entrypoint"));
    server.process().signal("TERM");
    assert_eq!(server.wait_for_exit().code(), Some(0));
    used.wait_for_close().expect("closed without a word");
    unused.wait_for_close().expect("closed without a word");
}

#[test]
fn timings_are_taken_and_shown() {
    let scratch = Scratch::new();
    let file = scratch.path().join("timings.txt");
    fs::write(&file, "local_download=0.001\n").expect("a file");
    let path = file.display().to_string();
    let server = Server::start(Flavour::any(), &Settings::with(["--telemetry", &path]));
    wait::until("the start is timed", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("startup="))
    });

    let response = server.call(&Request::new("GET", "/__opr/timings"));
    assert_eq!(response.head.one("content-type"), Some("text/plain; charset=utf-8"));
    let text = response.text();
    let lines: Vec<(&str, &str)> =
        text.lines().map(|line| line.split_once('=').expect("key=value")).collect();
    let keys: Vec<&str> = lines.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, ["local_download", "extract", "prepare", "startup"], "appended, in order");
    for (key, seconds) in lines {
        let (_, decimals) = seconds.split_once('.').expect("seconds with a fraction");
        assert_eq!(decimals.len(), 3, "{key}={seconds}");
        assert!(seconds.parse::<f64>().is_ok(), "{key}={seconds}");
    }
}

#[test]
fn log_ids_differ_between_servers() {
    let servers: Vec<_> =
        (0..2).map(|_| Server::start(Flavour::any(), &Settings::default())).collect();
    let ids: HashSet<String> = servers
        .iter()
        .flat_map(|server| (0..50).map(|_| server.call(&Request::action("entrypoint"))))
        .map(|response| response.log_id().expect("a log id").to_owned())
        .collect();
    assert_eq!(ids.len(), 100);
}
