//! The commands from outside: the real program against a daemon of canned answers.

#[path = "commands/calls.rs"]
mod calls;
#[path = "commands/daemon.rs"]
mod daemon;
#[path = "commands/settings.rs"]
mod settings;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use api::{DeployEvent, DeployRequest, Function, Instance, Status};
use archive::{UnpackLimits, unpack};
use daemon::{CALL, Daemon, TOKEN, function};
use model::LogLine;

/// The program with a home of its own and nothing else from this environment.
fn program(url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.env_clear().env("HEARTH_URL", url).env("HEARTH_TOKEN", TOKEN);
    command.env("HEARTH_DATA", "/nonexistent").stdin(Stdio::null());
    command
}

fn run(daemon: &Daemon, arguments: &[&str]) -> Output {
    program(&daemon.url()).args(arguments).output().expect("the program runs")
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let root = format!("hearth-commands-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(root).join(name);
        fs::create_dir_all(&path).expect("create");
        Self(path)
    }

    fn with_source(name: &str) -> Self {
        let folder = Self::new(name);
        fs::write(folder.0.join("index.js"), "source").expect("write");
        folder
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("plain")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().expect("made in one"));
    }
}

#[test]
fn lists_are_plain_columns_when_piped() {
    let daemon = Daemon::start();
    assert_eq!(
        stdout(&run(&daemon, &["ls"])),
        "\
NAME    STATE    RUNTIME      INSTANCES  CALLS  ERRORS  DEPLOYED  URL
hello   active   node-20.1.0          2      7       1        0s  http://hello.localhost
resize  failing  node-20.1.0          2      7       1        0s  http://resize.localhost
"
    );
    assert_eq!(
        stdout(&run(&daemon, &["ps"])),
        "\
INSTANCE  FUNCTION  RUNTIME      STATE  IN-FLIGHT  CALLS  AGE  IDLE   MEMORY
a1        hello     node-20.1.0  busy           1      7   3m    0s  39.1MiB
b2        -         node-20.1.0  spare          1      7   3m    0s        -
"
    );
    let of_one = stdout(&run(&daemon, &["ps", "hello", "resize"]));
    assert_eq!(of_one.lines().count(), 2, "without the spare: {of_one}");
    for (alias, command) in [("list", "ls"), ("status hello", "show hello")] {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let printed = |line| {
            let words = words(line);
            stdout(&run(&daemon, &words.iter().map(String::as_str).collect::<Vec<_>>()))
        };
        assert_eq!(printed(alias), printed(command));
    }
    assert_eq!(stdout(&run(&daemon, &["delete", "hello"])), "hello\n");
    let version = stdout(&run(&daemon, &["--version"]));
    assert_eq!(stdout(&run(&daemon, &["version"])), version);
    let shown = stdout(&run(&daemon, &["show", "resize"]));
    for part in [
        "resize",
        "failing",
        "no memory",
        "39.1MiB",
        "GREETING",
        "2024-11-20T13:20:00.000Z",
        "deployment 0193, asked for ",
        "hearth logs resize --since 2024-11-20T13:20:00.000Z",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn json_is_what_the_api_says() {
    let daemon = Daemon::start();
    let json = |arguments: &[&str]| stdout(&run(&daemon, arguments));
    let functions: Vec<Function> =
        serde_json::from_str(&json(&["ls", "--json"])).expect("functions");
    assert_eq!(functions, [function("hello"), function("resize")]);
    let one: Function =
        serde_json::from_str(&json(&["show", "hello", "--json"])).expect("a function");
    assert_eq!(one, function("hello"));
    let instances: Vec<Instance> =
        serde_json::from_str(&json(&["ps", "--json"])).expect("instances");
    assert_eq!(instances.len(), 2);
    let status: Status =
        serde_json::from_str(&json(&["top", "--once", "--json"])).expect("a status");
    assert_eq!(status.version, "0.1.0");
    let log = json(&["logs", "hello", "--json"]);
    let log: Vec<LogLine> = lines(&log);
    assert_eq!(log.len(), 3);
    let folder = Folder::with_source("json");
    let events: Vec<DeployEvent> = lines(&json(&["deploy", folder.path(), "--json"]));
    assert!(matches!(events.last(), Some(DeployEvent::Active { .. })), "{events:?}");
    let removed: Vec<String> =
        serde_json::from_str(&json(&["rm", "hello", "resize", "--json"])).expect("names");
    assert_eq!(removed, ["hello", "resize"]);
}

fn lines<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let daemon = Daemon::start();
    let folder = Folder::with_source("codes");
    let empty = Folder::new("empty");
    let path = folder.path();
    for (arguments, code, says) in [
        (&["show", "helo"][..], 66, "no function `helo`; did you mean `hello`?"),
        (&["logs", "helo"], 66, "did you mean"),
        (&["rm", "helo"], 66, "did you mean"),
        (&["invoke", "helo"], 66, "did you mean"),
        (&["invoke", "hello", "--file", "/nonexistent"], 66, "/nonexistent"),
        (&["invoke", "hello", "--path", "/../resize"], 64, "must begin with `/`"),
        (&["invoke", "hello", "--path", "/fail"], 1, "hearth logs hello --call"),
        (&["show", "Hello"], 64, "a function's name"),
        (&["logs", "hello", "--since", "yesterday"], 64, "10m"),
        (&["logs", "hello", "--call", "x7"], 64, "0-9 a-f -"),
        (&["logs", "hello", "--call", "7f"], 66, "no call whose id"),
        (&["deploy", path, "--name", "ruby"], 64, "no runtime `ruby`"),
        (&["deploy", path, "--name", "node-22"], 69, "no node 22 on this machine"),
        (&["top", "--interval", "1ms"], 64, "100ms"),
        (&["ls", "--token", "wrong"], 77, "does not accept this token"),
        (&["ls", "--token", "two words"], 64, "one word"),
        (&["ls", "--url", "nonsense"], 64, "nonsense"),
        (&["deploy", "/nonexistent"], 66, "no folder /nonexistent"),
        (&["deploy", env!("CARGO_BIN_EXE_hearth")], 64, "is not a folder"),
        (&["serve", "/nonexistent"], 66, "/nonexistent"),
        (&["up", "--config", "/nonexistent"], 66, "/nonexistent"),
        (&["up", "--domain", "http://bad domain"], 64, "domain must be a name"),
        (&["up", "--listen", "9201"], 64, "localhost:8080"),
        (&["up", "--url", "https://x.example"], 64, "--public-url"),
        (&["doctor", "--token", "x"], 64, "talks to no daemon"),
        (&["up", "--memory-reserve", "999999GiB"], 64, "at most half"),
        (&["runtimes", "--runtimes", "/nonexistent"], 66, "/nonexistent"),
        (&["deploy", empty.path()], 64, "no files"),
        (&["deploy", path, "--memory", "lots"], 64, "512MiB"),
        (&["set", "hello"], 64, "nothing to set"),
        (&["set", "helo", "--memory", "64M"], 66, "did you mean `hello`?"),
        (&["set", "hello", "--reset", "memroy"], 64, "'memory'"),
        (&["set", "hello", "--env-file", "/nonexistent"], 66, "/nonexistent"),
        (&["ps", "helo"], 66, "did you mean `hello`?"),
        (&["deploy", path, "--concurrency", "0"], 64, "a whole number from 1 to 1024"),
        (&["deploy", path, "--max", "0"], 64, "a whole number from 1 to 4096"),
        (&["deploy", path, "--env", "A B=c"], 64, "letters, digits"),
        (&["deploy", path, "--env", "HEARTH_SOCKET=1"], 64, "Hearth's own"),
        (&["serve", path, "--memory", "999999GiB"], 64, "this machine has"),
        (&["serve", path, "--cpus", "1000"], 64, "this machine has"),
        (&["deploy", path, "--name", "wrong", "--min", "9"], 64, "min is 9"),
        (&["deploy", path, "--name", "bad"], 65, "step `build`: no such package"),
        (&["deploy", path, "--name", "full"], 1, "the disk is full"),
        (&["deploy", path, "--name", "cut"], 1, "hearth show cut"),
    ] {
        let output = run(&daemon, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{arguments:?}: {}", stderr(&output));
    }
    let help = stdout(&run(&daemon, &["--help"]));
    for code in ["64", "65", "66", "69", "77", "130"] {
        assert!(help.contains(code), "{help}");
    }
}

#[test]
fn no_daemon_is_69_and_says_what_to_do() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let folder = Folder::with_source("no-daemon");
    for arguments in [&["ls"][..], &["invoke", "hello"], &["deploy", folder.path()], &["top"]] {
        let output = program(&url).args(arguments).output().expect("the program runs");
        assert_eq!(output.status.code(), Some(69), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("hearth: no daemon at http://127"), "{arguments:?}");
        assert!(stderr(&output).contains("hearth up"), "{arguments:?}");
    }
}

#[test]
fn a_local_daemons_token_is_read_from_its_directory() {
    let daemon = Daemon::start();
    let data = Folder::new("data");
    let token = data.0.join("token");
    fs::write(&token, format!("{TOKEN}\n")).expect("write");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("its owner's");
    let ls = |url: &str| {
        let mut command = program(url);
        command.env_remove("HEARTH_TOKEN").args(["ls", "--data", data.path()]);
        command.output().expect("the program runs")
    };
    stdout(&ls(&daemon.url()));
    let elsewhere = ls(&format!("http://0.0.0.0:{}", daemon.address.port()));
    assert_eq!(elsewhere.status.code(), Some(77), "{}", stderr(&elsewhere));
    assert!(stderr(&elsewhere).contains("wants a token"), "{}", stderr(&elsewhere));
    assert!(stderr(&elsewhere).contains("is another machine's"), "{}", stderr(&elsewhere));
    let sent = daemon.seen("GET", "/v1/functions").headers;
    assert!(!sent.contains_key("authorization"), "a secret of this machine stays on it: {sent:?}");
}

#[test]
fn the_data_directory_of_another_user_is_said_to_be_that() {
    const NOBODY: u32 = 65534;
    let data = Folder::new("others");
    fs::set_permissions(&data.0, fs::Permissions::from_mode(0o700)).expect("its owner's");
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let mut command = program("");
    command.env_remove("HEARTH_TOKEN").args(["ls", "--data", data.path()]).uid(NOBODY);
    let output = command.output().expect("the program runs");
    assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
    assert!(stderr(&output).contains("another user's data directory"), "{}", stderr(&output));
}

#[test]
fn a_deployment_sends_the_folder_and_what_was_asked_for() {
    let daemon = Daemon::start();
    let folder = Folder::with_source("my-function");
    fs::create_dir(folder.0.join(".git")).expect("create");
    fs::write(folder.0.join(".git/config"), "secret").expect("write");
    let output = run(
        &daemon,
        &[
            "deploy",
            folder.path(),
            "--runtime",
            "node-20",
            "--env",
            "A=1=2",
            "--unset",
            "B",
            "--memory",
            "64MiB",
            "--max",
            "3",
            "--timeout",
            "2s",
        ],
    );
    assert_eq!(stdout(&output), "http://my-function.localhost\n");
    let told = stderr(&output);
    assert!(told.contains("  | added 3 packages\n"), "{told}");
    assert!(told.contains("hearth invoke my-function"), "{told}");

    let sent = daemon.seen("POST", "/v1/functions/my-function/deployments");
    let [settings, source] = parts(&sent.body);
    let request: DeployRequest = serde_json::from_slice(settings).expect("a request");
    assert_eq!(request.runtime.as_deref(), Some("node-20"));
    assert_eq!(request.entrypoint, None, "told from the source");
    let expected = [("A".to_owned(), Some("1=2".to_owned())), ("B".to_owned(), None)];
    assert_eq!(request.settings.environment, expected.into());
    assert_eq!(request.settings.memory.as_deref(), Some("64MiB"));
    assert_eq!((request.settings.max, request.settings.min), (Some(3), None));

    let unpacked = Folder::new("unpacked");
    unpack(source, &unpacked.0, &UnpackLimits::default()).expect("an archive");
    let names: Vec<_> = fs::read_dir(&unpacked.0).expect("read").flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(fs::read(unpacked.0.join("index.js")).expect("unpacked"), b"source");
}

/// The contents of the two parts of a form.
fn parts(form: &[u8]) -> [&[u8]; 2] {
    let find = |text: &[u8], what: &[u8]| {
        text.windows(what.len()).position(|window| window == what).expect("it is there")
    };
    let boundary = &form[..find(form, b"\r\n")];
    let content = |part: &'static [u8]| {
        let part = &form[find(form, part)..];
        let start = find(part, b"\r\n\r\n") + 4;
        let part = &part[start..];
        &part[..find(part, boundary) - 2]
    };
    [content(b"name=\"settings\""), content(b"name=\"source\"")]
}

/// What a function is called where nobody says so.
#[test]
fn a_function_is_called_as_its_folder_was_typed() {
    let daemon = Daemon::start();
    let folder = Folder::with_source("hello");
    let parent = folder.0.parent().expect("it is in one");
    std::os::unix::fs::symlink("hello", parent.join("link")).expect("a link");
    let deploy = |within: &Path, typed: &str| {
        let mut command = program(&daemon.url());
        let output = command.current_dir(within).args(["deploy", typed]).output();
        output.expect("the program runs")
    };
    for (within, typed, expected) in [
        (parent, "hello", "hello"),
        (parent, "./hello", "hello"),
        (parent, "hello/", "hello"),
        (parent, "link", "link"),
        (parent, "./link", "link"),
        (parent, "link/.", "hello"),
        (&*folder.0, ".", "hello"),
        (&*folder.0, "../link/", "hello"),
    ] {
        let url = stdout(&deploy(within, typed));
        assert_eq!(url, format!("http://{expected}.localhost\n"), "{typed}");
    }
    for (name, suggested) in
        [("größe", "--name gr-e"), ("My_Function", "--name my-function"), ("日本", "with --name")]
    {
        let folder = Folder::with_source(name);
        let output = deploy(Path::new("/"), folder.path());
        assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
        assert!(stderr(&output).contains(suggested), "{}", stderr(&output));
        stdout(&run(&daemon, &["deploy", folder.path(), "--name", "chosen"]));
    }
}

/// A deployment that goes on until it is cancelled, and a program that waits for it.
#[test]
fn an_interrupt_cancels_a_deployment_and_says_so() {
    for (name, cancels, says) in [
        ("slow", true, "the deployment ended in step `build` (it was cancelled)"),
        ("late", true, "too late to cancel"),
        ("nameless", false, "the deployment goes on; `hearth show nameless`"),
    ] {
        let daemon = Daemon::start();
        let folder = Folder::with_source(name);
        let mut command = program(&daemon.url());
        command.args(["deploy", folder.path()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        let mut told = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        told.read_line(&mut line).expect("what the build prints");
        assert_eq!(line, "  | building\n");
        let id = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(id, rustix::process::Signal::INT).expect("our child");
        let mut rest = String::new();
        told.read_to_string(&mut rest).expect("the rest");
        let ended = child.wait().expect("it ends");
        assert_eq!(ended.code(), Some(130), "{name}: {rest}");
        assert!(rest.contains(says), "{name}: {rest}");
        let is_cancelled = daemon.all_seen().iter().any(|seen| seen.method == "DELETE");
        assert_eq!(is_cancelled, cancels, "{name}");
    }
}

#[test]
fn a_folder_is_not_sent_to_a_daemon_that_does_not_know_us() {
    let daemon = Daemon::start();
    let folder = Folder::with_source("unsent");
    let output = run(&daemon, &["deploy", folder.path(), "--token", "wrong"]);
    assert_eq!(output.status.code(), Some(77));
    assert!(daemon.all_seen().iter().all(|seen| seen.method == "GET"));
}

#[test]
fn replies_and_logs_are_printed_as_they_come() {
    let daemon = Daemon::start();
    for (arguments, first) in [
        (&["invoke", "hello", "--path", "/stream"][..], "first\n"),
        (&["logs", "hello", "--follow"], "2024-11-20T13:20:00.123Z  456789ab  log     hi\n"),
    ] {
        let mut command = program(&daemon.url());
        let child = command.args(arguments).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the program runs");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("the first line, while the second is held back");
        assert_eq!(line, first);
        daemon.release();
        line.clear();
        output.read_line(&mut line).expect("the rest");
        assert!(!line.is_empty());
        // Who follows a log goes on once the daemon has ended; a call is over.
        if arguments[0] == "logs" {
            child.kill().expect("our child");
            child.wait().expect("it ends");
        } else {
            assert!(child.wait().expect("it ends").success());
        }
    }
}

/// The log of a function whose daemon ends, is not ready at once, is back, and then does not know the
/// function any more.
#[test]
fn a_followed_log_goes_on_where_it_was_left() {
    let daemon = Daemon::start();
    let output = run(&daemon, &["logs", "resize", "-f", "--since", "2024-11-20T13:00:00Z"]);
    assert_eq!(output.status.code(), Some(66), "{}", stderr(&output));
    let printed = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = printed.lines().map(|line| line.split_whitespace().nth(2)).collect();
    assert_eq!(lines, [Some("log"), Some("note"), Some("end")], "nothing twice: {printed}");
    let told = stderr(&output);
    assert_eq!(told.matches("note: the daemon ended the log").count(), 2, "{told}");
    assert_eq!(told.matches("note: the daemon is back").count(), 1, "{told}");
    let asked: Vec<_> = daemon.all_seen().into_iter().map(|seen| seen.target).collect();
    assert!(asked[0].ends_with("logs?since=1732107600000&follow=true"), "{asked:?}");
    assert!(asked[1].ends_with("logs?since=1732108798123&limit=100000&follow=true"), "{asked:?}");
    stdout(&run(&daemon, &["logs", "hello", "--tail", "7"]));
    assert!(daemon.seen("GET", "/v1/functions/hello/logs").target.ends_with("?limit=7"));
}

#[test]
fn a_log_says_when_which_call_and_how_it_ended() {
    let daemon = Daemon::start();
    let since = "2024-11-20T13:00:00Z";
    let output = run(&daemon, &["logs", "hello", "--since", since, "-n", "5", "--call", CALL]);
    assert_eq!(
        stdout(&output),
        format!(
            "\
2024-11-20T13:20:00.123Z  456789ab  log     hi
2024-11-20T13:20:00.123Z  -         note    7 bytes were left out
2024-11-20T13:20:00.123Z  456789ab  end     GET /x 500 failed in 1.23ms: it broke  {CALL}
"
        )
    );
    let asked = daemon.seen("GET", "/v1/functions/hello/logs").target;
    assert_eq!(asked, format!("/v1/functions/hello/logs?call={CALL}&since=1732107600000&limit=5"));
}

/// Whatever a daemon, a build or a function says: no command passes it to a terminal, and no line of
/// it looks like one of ours.
#[test]
fn what_others_say_is_shown_and_not_done() {
    let daemon = Daemon::hostile();
    let folder = Folder::with_source("hostile");
    let path = folder.path();
    for arguments in [
        &["ls"][..],
        &["ps"],
        &["show", "hello"],
        &["top", "--once", "--interval", "100ms"],
        &["logs", "hello"],
        &["rm", "hello", "helo"],
        &["deploy", path],
        &["deploy", "-v", path],
        &["deploy", path, "--name", "bad"],
        &["deploy", path, "--name", "wrong"],
        &["set", "hello", "-v", "--min", "1"],
        &["set", "helo", "--min", "1"],
        &["invoke", "hello", "--path", "/fail"],
    ] {
        let output = run(&daemon, arguments);
        let is_reply = arguments[0] == "invoke";
        let printed = if is_reply { Vec::new() } else { output.stdout.clone() };
        for text in [String::from_utf8(printed).expect("text"), stderr(&output)] {
            let is_ordinary = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
            assert!(text.chars().all(is_ordinary), "{arguments:?}: {text:?}");
            assert!(!text.lines().any(|line| line.starts_with("forged")), "{arguments:?}: {text}");
        }
    }
    let log = stdout(&run(&daemon, &["logs", "hello"]));
    let shown = "456789ab  log     hi\\x1b]0;owned\\x07\n\
                 \x20                                         | forged\\u{202e}\n";
    assert!(log.contains(shown), "{log}");
    let raw = stdout(&run(&daemon, &["logs", "hello", "--raw"]));
    assert!(raw.contains("log     hi\x1b]0;owned\x07\nforged\u{202e}\n"), "{raw}");
    let json = stdout(&run(&daemon, &["logs", "hello", "--json"]));
    assert!(json.contains("hi\\u001b]0;owned\\u0007\\nforged"), "JSON has escapes of its own");
}

#[test]
fn the_environment_does_not_make_arguments_look_required() {
    let daemon = Daemon::start();
    let output = run(&daemon, &["show"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("Usage: hearth show [OPTIONS] <NAME>"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("--url <URL>"), "{}", stderr(&output));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let daemon = Daemon::start();
    for arguments in [
        &["ls"][..],
        &["ps", "--json"],
        &["completions", "bash"],
        &["invoke", "hello"],
        &["runtimes"],
        &["runtimes", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = program(&daemon.url());
        let output = command.args(arguments).stdout(writer).output().expect("the program runs");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
}

/// `doctor` is not among those of the closed pipe, since its code is another on a machine that lacks
/// something.
#[test]
fn a_full_disk_behind_the_output_is_an_error_and_no_panic() {
    let daemon = Daemon::start();
    for arguments in
        [&["ls"][..], &["doctor"], &["doctor", "--json"], &["runtimes"], &["runtimes", "--json"]]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
        let mut command = program(&daemon.url());
        let output = command.args(arguments).stdout(full).output().expect("the program runs");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("No space left"), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_folder_for_a_backup_that_does_not_exist_is_said() {
    let daemon = Daemon::start();
    let output = run(&daemon, &["backup", "/nonexistent/hearth.tar.zst"]);
    assert_eq!(output.status.code(), Some(66), "{}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains("there is no folder /nonexistent\n"), "{told}");
}

#[test]
fn no_function_is_called_with_connect() {
    let daemon = Daemon::start();
    let output = run(&daemon, &["invoke", "hello", "--method", "connect"]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(stderr(&output).contains("CONNECT"), "{}", stderr(&output));
}

#[test]
fn top_tells_rates_of_the_interval() {
    let daemon = Daemon::start();
    let printed = stdout(&run(&daemon, &["top", "--once", "--interval", "100ms"]));
    let row = printed.lines().last().expect("a row");
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[0], "hello", "{printed}");
    // Ten calls in a tenth of a second, or somewhat longer.
    let rate: f64 = cells[1].parse().expect("a number");
    assert!(rate > 0.0 && rate <= 100.0, "{printed}");
    assert_eq!(cells[2..], ["0.0", "1.50ms", "1", "0", "2", "-"], "{printed}");
}

#[test]
fn removing_goes_on_after_a_failure() {
    let daemon = Daemon::start();
    let output = run(&daemon, &["rm", "helo", "resize", "nobody"]);
    assert_eq!(output.status.code(), Some(66));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "resize\n");
    let told = stderr(&output);
    assert!(told.contains("`helo`") && told.contains("`nobody`"), "{told}");
    daemon.seen("DELETE", "/v1/functions/nobody");
}

#[test]
fn every_command_has_examples_and_shells_complete_them() {
    let daemon = Daemon::start();
    for command in [
        "up",
        "serve",
        "doctor",
        "runtimes",
        "deploy",
        "init",
        "set",
        "invoke",
        "logs",
        "ls",
        "show",
        "ps",
        "top",
        "rm",
        "completions",
        "man",
    ] {
        let help = stdout(&run(&daemon, &[command, "--help"]));
        assert!(help.contains(&format!("Examples:\n  hearth {command}")), "{help}");
        assert!(!help.contains(TOKEN), "secrets are not shown: {help}");
    }
    let up = stdout(&run(&daemon, &["up", "--help"]));
    assert!(up.contains("0:8080 --public-url https://"), "{up}");
}

/// What the shells do with their scripts, as far as they are here: `bash` for real.
#[test]
fn shells_complete_commands_values_and_names_of_functions() {
    let daemon = Daemon::start();
    for (shell, part) in
        [("bash", "complete -o"), ("zsh", "#compdef hearth"), ("fish", "complete --")]
    {
        let script = stdout(&run(&daemon, &["completions", shell]));
        assert!(script.contains(part) && script.contains("HEARTH_COMPLETE"), "{shell}: {script}");
    }
    if !Path::new("/usr/bin/bash").exists() {
        eprintln!("skipped: no bash on this machine");
        return;
    }
    let program_path = Path::new(env!("CARGO_BIN_EXE_hearth"));
    let directory = program_path.parent().expect("it is in a directory").display();
    let script = "source <(hearth completions bash); COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                  COMP_TYPE=9; _clap_complete_hearth hearth \"${COMP_WORDS[COMP_CWORD]}\" x; \
                  printf '%s\\n' \"${COMPREPLY[@]}\"";
    for (words, expected) in [
        (&["hearth", "dep"][..], "deploy"),
        (&["hearth", "show", ""], "hello resize --json"),
        (&["hearth", "logs", "he"], "hello"),
        (&["hearth", "rm", "hello", "re"], "resize"),
        (&["hearth", "set", "--reset", "me"], "memory"),
        (&["hearth", "deploy", "--network", "e"], "egress"),
        (&["hearth", "init", "--runtime", "py"], "python"),
        (&["hearth", "ls", "--color", "a"], "auto always"),
        (&["hearth", "deploy", "--env-"], "--env-file"),
        (&["hearth", "invoke", "nothing-"], ""),
    ] {
        let mut command = Command::new("/usr/bin/bash");
        command.args(["--norc", "-c", script, "bash"]).args(words).stdin(Stdio::null()).env_clear();
        command.env("PATH", format!("{directory}:/usr/bin:/bin")).env("HEARTH_URL", daemon.url());
        let output = command.env("HEARTH_TOKEN", TOKEN).output().expect("bash runs");
        let found: Vec<_> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        // Flags are offered behind what the word itself may be.
        let found = found.join(" ");
        let is_right =
            if words[2..].contains(&"") { found.starts_with(expected) } else { found == expected };
        assert!(is_right, "{words:?}: {found}, not {expected}; {}", stderr(&output));
    }
}

#[test]
fn the_unit_of_systemd_is_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib/hearth.service");
    let unit = fs::read_to_string(path).expect("it is there");
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        eprintln!("skipped: no systemd-analyze on this machine");
        return;
    }
    // Its program and its manual pages are not installed where the tests run.
    let lines = unit.lines().filter(|line| !line.starts_with("Documentation="));
    let unit: String = lines.map(|line| format!("{line}\n")).collect();
    let unit =
        unit.replace("/usr/local/bin/hearth up", concat!(env!("CARGO_BIN_EXE_hearth"), " up"));
    let folder = Folder::new("unit");
    let file = folder.0.join("hearth.service");
    fs::write(&file, unit).expect("write");
    let mut command = Command::new("/usr/bin/systemd-analyze");
    let output = command.args(["verify", "--man=no"]).arg(&file).output().expect("it runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "", "and nothing to remark");
}

#[test]
fn the_help_is_there_as_manual_pages() {
    let daemon = Daemon::start();
    let folder = Folder::new("man");
    let directory = folder.0.join("man1");
    let printed = stdout(&run(&daemon, &["man", directory.to_str().expect("plain")]));
    assert_eq!(printed.lines().count(), fs::read_dir(&directory).expect("made").count());
    for (page, part) in [
        ("hearth.1", "hearth\\-deploy"),
        ("hearth-deploy.1", "\\-\\-env\\-file"),
        ("hearth-up.1", "\\-\\-listen"),
        ("hearth-set.1", "\\-\\-reset"),
    ] {
        let text = fs::read_to_string(directory.join(page)).expect(page);
        assert!(text.contains(".TH") && text.contains(part), "{page}: {text}");
        assert!(!text.contains(TOKEN), "secrets are not shown: {text}");
    }
}

/// What a person sees: `script` gives the program a terminal.
#[test]
fn a_terminal_gets_a_ruled_table() {
    if !Path::new("/usr/bin/script").exists() {
        eprintln!("skipped: no `script` on this machine to make a terminal with");
        return;
    }
    let daemon = Daemon::start();
    let shown = |width: u16, line: &str, more: [&str; 2]| {
        let line = format!("stty cols {width} rows 20; {} {line}", env!("CARGO_BIN_EXE_hearth"));
        let mut command = Command::new("/usr/bin/script");
        command.args(["-qec", &line, "/dev/null"]).env("HEARTH_URL", daemon.url());
        command.env("TERM", "xterm").env_remove("NO_COLOR").env(more[0], more[1]);
        let output = command.env("HEARTH_TOKEN", TOKEN).stdin(Stdio::null()).output();
        String::from_utf8_lossy(&output.expect("script runs").stdout).into_owned()
    };
    let nothing = ["HEARTH_NOTHING", ""];
    let printed = shown(40, "ls", nothing);
    assert!(printed.contains("hello") && printed.contains("─────"), "{printed}");
    assert!(printed.contains("http://resize.localhost"), "an address stays whole: {printed}");
    assert!(printed.contains("\x1b[31mfailing\x1b[0m"), "{printed:?}");
    for width in [50, 80, 100] {
        for line in ["ls", "ps", "show resize", "top --once --interval 100ms"] {
            let printed = shown(width, &format!("{line} --color never"), nothing);
            assert!(!printed.contains('\x1b'), "{printed:?}");
            // The facts of a function are not a table.
            let table = printed.lines().skip(if line.starts_with("show") { 20 } else { 0 });
            for row in table.map(|row| row.trim_end_matches('\r')) {
                let is_summary = line.starts_with("top") && row.starts_with("hearth ");
                assert!(row.chars().count() <= width.into() || is_summary, "{width}: {printed}");
            }
        }
    }
    assert!(!shown(80, "ls", ["NO_COLOR", "1"]).contains('\x1b'));
    assert!(shown(80, "ls", ["NO_COLOR", ""]).contains('\x1b'), "an empty one does not count");
    assert!(!shown(80, "ls", ["TERM", "dumb"]).contains('\x1b'));
    assert!(shown(80, "show helo", nothing).contains("\x1b[31mhearth:\x1b[0m no function"));
    assert!(!shown(80, "show --nonsense --color never", nothing).contains('\x1b'));
}

#[test]
fn colours_are_where_they_are_wanted() {
    let daemon = Daemon::start();
    for arguments in [&["ls"][..], &["show", "resize"], &["logs", "hello"]] {
        let plain = stdout(&run(&daemon, arguments));
        assert!(!plain.contains('\x1b'), "a pipe has none: {plain:?}");
        let colored = stdout(&run(&daemon, &[arguments, &["--color", "always"]].concat()));
        assert!(colored.contains("\x1b[31m"), "{colored:?}");
        let bare = ["31", "32", "2"].iter().fold(colored.clone(), |text, code| {
            text.replace(&format!("\x1b[{code}m"), "").replace("\x1b[0m", "")
        });
        assert_eq!(bare, plain, "the words are the same");
    }
    let output = run(&daemon, &["show", "helo", "--color=always"]);
    assert!(stderr(&output).starts_with("\x1b[31mhearth:\x1b[0m no function"));
}

#[test]
fn a_verbose_deployment_says_what_is_sent_and_how_long_it_takes() {
    let daemon = Daemon::start();
    let folder = Folder::with_source("verbose");
    fs::write(folder.0.join(".env"), "").expect("write");
    let flags = ["--env", "SECRET=hidden-value", "--unset-env", "B", "--memory", "64M"];
    let brief = run(&daemon, &[&["deploy", folder.path()], &flags[..]].concat());
    assert!(!stderr(&brief).contains("took"), "{}", stderr(&brief));
    let output = run(&daemon, &[&["deploy", "-v", folder.path()], &flags[..]].concat());
    let told = stderr(&output);
    for part in [
        "1 files of 6B packed to ",
        ", 1 left out\n",
        "name         verbose\n",
        "memory       64M\n",
        "variables    SECRET\n",
        "removed      B\n",
        "build took ",
        "start took ",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("hidden-value"), "{told}");
    assert_eq!(stdout(&output), "http://verbose.localhost\n", "the result is the same");
}

/// Without a terminal a line now and then says that a deployment is still waited for.
#[test]
fn a_deployment_that_takes_long_shows_life_in_a_log() {
    let daemon = Daemon::start();
    let folder = Folder::with_source("slow");
    let mut command = program(&daemon.url());
    command.args(["deploy", folder.path()]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let mut told = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.starts_with("waiting: build (") {
        line.clear();
        assert!(told.read_line(&mut line).expect("text") > 0, "it ended without a sign of life");
    }
    daemon.release();
    let mut rest = String::new();
    told.read_to_string(&mut rest).expect("the rest");
    assert_eq!(child.wait().expect("it ends").code(), Some(65), "{rest}");
}
