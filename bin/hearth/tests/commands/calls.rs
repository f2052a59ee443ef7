//! `hearth invoke`: what is sent, and what is printed.

use std::{
    fs,
    io::{Read, Write},
    process::Stdio,
};

use crate::{
    Folder,
    daemon::{CALL, Daemon, TOKEN},
    program, run, stderr, stdout,
};

#[test]
fn a_call_is_what_it_was_told_to_be() {
    let daemon = Daemon::start();
    let folder = Folder::new("bodies");
    let file = folder.0.join("body");
    fs::write(&file, b"\xff\x00").expect("write");
    let file = file.to_str().expect("plain");
    let text = "text/plain; charset=utf-8";
    for (arguments, expected) in [
        (&[][..], "GET / -\n".to_owned()),
        (&["--data", "hi"], format!("POST / {text}\nhi")),
        (&["--data", ""], format!("POST / {text}\n")),
        (&["--data", "{\"a\": 1}"], "POST / application/json\n{\"a\": 1}".into()),
        (&["-d", "hi", "-X", "put", "-H", "Content-Type: a/b"], "PUT / a/b\nhi".into()),
        (&["--path", "/x/y?z=%20"], "GET /x/y?z=%20 -\n".into()),
    ] {
        let arguments = [&["invoke", "hello"], arguments].concat();
        assert_eq!(stdout(&run(&daemon, &arguments)), expected, "{arguments:?}");
    }
    let output = run(&daemon, &["invoke", "hello", "--file", file]);
    assert_eq!(output.stdout, b"POST / application/octet-stream\n\xff\x00");
    let sent = daemon.seen("POST", "/fn/hello/").headers;
    assert!(!sent.contains_key("authorization"), "functions get no token: {sent:?}");
}

#[test]
fn standard_input_is_read_only_if_it_is_named() {
    let daemon = Daemon::start();
    let call = |arguments: &[&str], input: &str| {
        let mut command = program(&daemon.url());
        command.args(["invoke", "hello"]).args(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the program runs");
        let mut stdin = child.stdin.take().expect("piped");
        // Whoever is not asked for a body does not read it.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        stdout(&child.wait_with_output().expect("it ends"))
    };
    assert_eq!(call(&["--data", "-"], "[1]"), "POST / application/json\n[1]");
    assert_eq!(call(&["--file", "-"], "x"), "POST / text/plain; charset=utf-8\nx");
    assert_eq!(call(&["--data", "-"], ""), "POST / text/plain; charset=utf-8\n");
    assert_eq!(call(&[], "[1]"), "GET / -\n");
    assert_eq!(call(&["--data", "y"], "x"), "POST / text/plain; charset=utf-8\ny");
    assert_eq!(call(&["--method", "POST"], "x"), "POST / -\n");
}

/// As under a supervisor or in a script, where nobody ever closes it.
#[test]
fn a_pipe_that_stays_open_is_not_waited_for() {
    let daemon = Daemon::start();
    let (reader, _kept_open) = std::io::pipe().expect("a pipe");
    let mut command = program(&daemon.url());
    let output = command.args(["invoke", "hello"]).stdin(reader).output();
    assert_eq!(stdout(&output.expect("the program runs")), "GET / -\n");
}

#[test]
fn a_loop_over_lines_keeps_its_lines() {
    let daemon = Daemon::start();
    let line = format!(
        "printf 'a\\nb\\n' | while read name; do {} invoke hello --path /$name; done",
        env!("CARGO_BIN_EXE_hearth")
    );
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &line]).env("HEARTH_URL", daemon.url()).env("HEARTH_TOKEN", TOKEN);
    let output = shell.output().expect("a shell");
    assert_eq!(stdout(&output), "GET /a -\nGET /b -\n");
}

/// A person's terminal, which `script` makes.
#[test]
fn a_reply_on_a_terminal_moves_nothing_and_ends_its_line() {
    if !std::path::Path::new("/usr/bin/script").exists() {
        eprintln!("skipped: no `script` on this machine to make a terminal with");
        return;
    }
    let daemon = Daemon::start();
    let on_terminal = |flags: &str| {
        let invoke =
            format!("{} invoke hello --path /escape {flags}", env!("CARGO_BIN_EXE_hearth"));
        let mut script = std::process::Command::new("/usr/bin/script");
        script.args(["-qec", &format!("{invoke}; echo end"), "/dev/null"]);
        script.env("HEARTH_URL", daemon.url()).env("HEARTH_TOKEN", TOKEN).stdin(Stdio::null());
        let output = script.output().expect("a terminal");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = on_terminal("");
    assert!(shown.contains("\\x1b[2Jmoved\r\nend"), "{shown:?}");
    let raw = on_terminal("--raw");
    assert!(raw.contains("\x1b[2Jmovedend"), "{raw:?}");
    let piped = run(&daemon, &["invoke", "hello", "--path", "/escape"]);
    assert_eq!(stdout(&piped), "\x1b[2Jmoved", "a pipe gets the bytes");
}

#[test]
fn a_failed_call_still_prints_its_body() {
    let daemon = Daemon::start();
    let output = run(&daemon, &["invoke", "hello", "--path", "/fail", "--include", "--timing"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.starts_with("HTTP/1.1 500 Internal Server Error\n"), "{printed}");
    assert!(printed.contains(&format!("\nx-hearth-call: {CALL}\n")), "{printed}");
    assert!(printed.ends_with("\n\nit broke"), "{printed}");
    let told = stderr(&output);
    assert!(told.contains("wait 0.012ms, call 1.5ms; seen from here"), "{told}");
    assert!(told.contains(&format!("hearth logs hello --call {CALL}")), "{told}");
}

#[test]
fn a_reply_that_is_cut_off_is_explained_by_the_log() {
    let daemon = Daemon::start();
    let mut command = program(&daemon.url());
    command.args(["invoke", "hello", "--path", "/cut"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program runs");
    let mut first = [0; 6];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("what there is");
    assert_eq!(&first, b"first\n");
    daemon.release();
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    for expected in [
        "`hello` failed while it replied, after 1.23ms (it broke)",
        &format!("hearth logs hello --call {CALL}"),
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    assert!(daemon.seen("GET", "/v1/functions/hello/logs").target.contains(CALL));
}
