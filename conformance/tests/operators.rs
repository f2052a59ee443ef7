//! What operators do to a daemon by mistake, and what they may rely on all the same.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use conformance::{
    flavour::Flavour,
    platform::{fixture, skip},
    process::Process,
    server::{Scratch, adapter, hearth},
    wait,
};

/// `hearth up` in whatever circumstances. Dropping it kills it.
struct Up {
    child: Child,
    data: PathBuf,
}

impl Up {
    /// Starts it with its data in a directory, which other arguments may name.
    fn start(data: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = hearth();
        command.args(["up", "--listen", "127.0.0.1:0", "--adapter", &adapter()]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).env("HEARTH_DATA", data);
        prepare(&mut command);
        let child = command.spawn().expect("hearth runs");
        Self { child, data: data.into() }
    }

    fn serving(data: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut up = Self::start(data, prepare);
        wait::until("the daemon answers", || {
            assert!(up.child.try_wait().expect("our child").is_none(), "it has ended");
            up.command(&["ls"]).status.success()
        });
        up
    }

    /// Runs a command that finds the daemon by its data.
    fn command(&self, arguments: &[&str]) -> Output {
        command(&self.data, arguments)
    }

    fn process(&self) -> Process {
        Process::of(self.child.id()).expect("it runs")
    }

    /// Asks it to end. Its exit code.
    fn stop(&mut self) -> Option<i32> {
        self.process().signal("TERM");
        self.ended()
    }

    fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        wait::until("the daemon has ended", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let family = Process::of(self.child.id()).map(|process| process.descendants());
        let _ = self.child.kill();
        let _ = self.child.wait();
        wait::comes(|| !family.iter().flatten().any(Process::is_alive));
    }
}

/// Runs a command that finds a daemon by its data.
fn command(data: &Path, arguments: &[&str]) -> Output {
    hearth().args(arguments).env("HEARTH_DATA", data).output().expect("hearth runs")
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", errors(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn deploy(up: &Up, name: &str) {
    let source = fixture(&Flavour::any().runtime);
    let source = source.to_str().expect("our paths are text");
    succeeds(&up.command(&["deploy", source, "--name", name]));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it exists").mode() & 0o7777
}

/// A pipe that nobody reads, and that somebody else keeps full until its reader is dropped.
fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut filler = writer.try_clone().expect("a copy");
    thread::spawn(move || while filler.write_all(&[b'x'; 4096]).is_ok() {});
    (reader, writer)
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let (unread, full) = full_pipe();
    let closed = io::pipe().expect("a pipe").1;
    let no_room = File::options().write(true).open("/dev/full").expect("a device");
    let logs: [(&str, Stdio); 3] = [
        ("a pipe that nobody reads", full.into()),
        ("a closed pipe", closed.into()),
        ("a full disk", no_room.into()),
    ];
    for (what, log) in logs {
        let scratch = Scratch::new();
        let mut up = Up::serving(&scratch.path().join("data"), |command| {
            // Nobody who listens to where it serves, and everything is logged.
            let closed = io::pipe().expect("a pipe").1;
            command.arg("-vv").stdout(closed).stderr(log);
        });
        for name in ["first", "second"] {
            deploy(&up, name);
            succeeds(&up.command(&["invoke", name]));
            deploy(&up, name);
        }
        succeeds(&up.command(&["rm", "second"]));
        assert_eq!(up.stop(), Some(0), "{what}");
    }
    drop(unread);
}

#[test]
fn relative_paths_begin_where_they_are_said() {
    let scratch = Scratch::new();
    let here = scratch.path();
    fs::create_dir(here.join("etc")).expect("made");
    fs::write(here.join("etc/hearth.toml"), "data = '../in-file'").expect("written");
    let cases: [(&str, &[&str], Option<&str>); 3] = [
        ("by-flag", &["--data", "./by-flag"], None),
        ("by-variable", &[], Some("by-variable")),
        ("in-file", &["--config", "etc/hearth.toml"], None),
    ];
    for (name, arguments, variable) in cases {
        let data = here.join(name);
        let mut up = Up::serving(&data, |command| {
            command.current_dir(here).env_remove("HEARTH_DATA").args(arguments);
            command.envs(variable.map(|value| ("HEARTH_DATA", value)));
        });
        deploy(&up, "relative");
        succeeds(&up.command(&["invoke", "relative"]));
        assert_eq!(up.stop(), Some(0), "{name}");
    }
}

#[test]
fn a_data_directory_is_its_owners_alone() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    fs::create_dir(&data).expect("made");
    fs::set_permissions(&data, Permissions::from_mode(0o755)).expect("opened");
    let mut up = Up::serving(&data, |_| {});
    assert_eq!(mode(&data), 0o700, "closed at the start");
    assert_eq!(mode(&data.join("daemon.sock")), 0o600);
    deploy(&up, "private");
    for entry in fs::read_dir(&data).expect("there").flatten() {
        let mode = mode(&entry.path());
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.path().display());
    }
    assert_eq!(up.stop(), Some(0));
    assert!(!data.join("daemon.sock").exists(), "nobody listens any more");

    // A token that others can read proves nothing, to nobody.
    fs::set_permissions(data.join("token"), Permissions::from_mode(0o644)).expect("opened");
    let mut up = Up::start(&data, |command| _ = command.stderr(Stdio::piped()));
    assert_eq!(up.ended(), Some(77));
    let refused = command(&data, &["ls"]);
    assert_eq!(refused.status.code(), Some(77), "{}", errors(&refused));
    assert!(errors(&refused).contains("chmod 600"), "{}", errors(&refused));

    if std::os::unix::fs::chown(&data, Some(65534), Some(65534)).is_ok() {
        let mut up = Up::start(&data, |_| {});
        assert_ne!(up.ended(), Some(0), "somebody else's directory");
    } else {
        skip("somebody else's data directory: only root can make one");
    }
}

#[test]
fn commands_reach_the_daemon_without_its_port() {
    let scratch = Scratch::new();
    // Longer than the address of a socket can be.
    let data = scratch.path().join("d".repeat(100)).join("data");
    let mut up = Up::serving(&data, |_| {});
    deploy(&up, "local");
    succeeds(&up.command(&["invoke", "local"]));
    let shown = succeeds(&up.command(&["show", "local"]));
    assert!(shown.contains("http://127.0.0.1:"), "functions have URLs as before: {shown}");
    let mut follow = hearth();
    follow.args(["logs", "local", "--follow"]).env("HEARTH_DATA", &data).stdout(Stdio::piped());
    let mut follow = follow.spawn().expect("hearth runs");
    let mut lines = io::BufReader::new(follow.stdout.take().expect("piped"));
    let mut line = String::new();
    io::BufRead::read_line(&mut lines, &mut line).expect("a line");
    assert!(!line.is_empty());
    assert_eq!(up.stop(), Some(0));

    let gone = command(&data, &["ls"]);
    assert_eq!(gone.status.code(), Some(69), "{}", errors(&gone));
    assert!(errors(&gone).contains("hearth up"), "{}", errors(&gone));

    // Who follows goes on where they were as soon as the daemon is back.
    let mut up = Up::serving(&data, |_| {});
    succeeds(&up.command(&["invoke", "local", "--path", "/again"]));
    while !line.contains("/again") {
        line.clear();
        assert_ne!(io::BufRead::read_line(&mut lines, &mut line).expect("a line"), 0, "it goes on");
    }
    follow.kill().expect("it runs");
    follow.wait().expect("our child");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_token_is_not_sent_to_whoever_holds_the_port() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let mut up = Up::serving(&data, |_| {});
    assert_eq!(up.stop(), Some(0));
    // No daemon listens, and somebody else does. Only who names both gets there with a token.
    let output = command(&data, &["ls"]);
    assert_eq!(output.status.code(), Some(69), "{}", errors(&output));
    assert!(listener.accept().is_err(), "nobody has come by");
    let home = scratch.path().join("home");
    fs::create_dir_all(home.join(".local/share")).expect("made");
    fs::rename(&data, home.join(".local/share/hearth")).expect("the usual place");
    let mut named = hearth();
    named.args(["ls", "--url", &url]).env("HOME", &home).stderr(Stdio::piped());
    let mut named = named.spawn().expect("hearth runs");
    let mut stream = None;
    wait::until("it connects", || {
        stream = listener.accept().ok();
        stream.is_some()
    });
    let (mut stream, _) = stream.expect("accepted");
    stream.set_nonblocking(false).expect("set");
    let mut head = [0; 4096];
    let read = io::Read::read(&mut stream, &mut head).expect("a request");
    let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
    assert!(head.starts_with("get /v1/functions"), "{head}");
    assert!(!head.contains("authorization"), "{head}");
    drop(stream);
    assert!(!named.wait().expect("our child").success());
}

#[test]
fn stores_without_their_catalog_are_left_alone() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let mut up = Up::serving(&data, |_| {});
    deploy(&up, "kept");
    // The catalog as it is now, without what is in its write-ahead log.
    let torn = fs::read(data.join("catalog.db")).expect("read");
    deploy(&up, "later");
    assert_eq!(up.stop(), Some(0));
    let whole = fs::read(data.join("catalog.db")).expect("read");
    let blobs = || fs::read_dir(data.join("blobs")).expect("there").count();
    let before = blobs();

    for (what, content) in [("missing", None), ("empty", Some(vec![])), ("older", Some(torn))] {
        let _ = fs::remove_file(data.join("catalog.db"));
        if let Some(content) = &content {
            fs::write(data.join("catalog.db"), content).expect("written");
        }
        let mut up = Up::start(&data, |command| _ = command.stderr(Stdio::piped()));
        assert_eq!(up.ended(), Some(66), "{what}");
        let mut said = String::new();
        let stderr = up.child.stderr.as_mut().expect("piped");
        io::Read::read_to_string(stderr, &mut said).expect("read");
        assert!(said.contains("hearth restore FILE"), "{what}: {said}");
        assert_eq!(blobs(), before, "{what}: nothing was removed");
    }

    fs::write(data.join("catalog.db"), whole).expect("written");
    let mut up = Up::serving(&data, |_| {});
    for name in ["kept", "later"] {
        succeeds(&up.command(&["invoke", name]));
    }
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn what_the_catalog_does_not_know_goes_to_the_trash() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let mut up = Up::serving(&data, |_| {});
    deploy(&up, "known");
    assert_eq!(up.stop(), Some(0));
    let name = "0".repeat(64);
    fs::create_dir_all(data.join("blobs/00")).expect("made");
    fs::write(data.join("blobs/00").join(&name), "somebody's").expect("written");
    let mut up = Up::serving(&data, |_| {});
    assert!(!data.join("blobs/00").join(&name).exists());
    let days: Vec<_> = fs::read_dir(data.join("trash")).expect("there").flatten().collect();
    let kept = days[0].path().join("blobs").join(&name);
    assert_eq!(fs::read(kept).expect("kept"), b"somebody's");
    succeeds(&up.command(&["invoke", "known"]));
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_backup_brings_functions_back() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let file = scratch.path().join("backup.tar.zst");
    let path = file.to_str().expect("our paths are text");
    let mut up = Up::serving(&data, |_| {});
    for name in ["first", "second"] {
        deploy(&up, name);
    }
    // While others deploy, a backup that is killed leaves no file, and one that is not is whole.
    thread::scope(|scope| {
        let busy = scope.spawn(|| (0..3).for_each(|_| deploy(&up, "second")));
        let mut killed = hearth();
        killed.args(["backup", path]).env("HEARTH_DATA", &data).stderr(Stdio::null());
        let mut killed = killed.spawn().expect("hearth runs");
        let _ = killed.kill();
        let _ = killed.wait();
        let _ = fs::remove_file(&file);
        succeeds(&up.command(&["backup", path]));
        busy.join().expect("deployed");
    });
    assert_eq!(mode(&file), 0o600);
    let streamed = up.command(&["backup", "-"]);
    assert!(streamed.status.success() && streamed.stdout.len() > 1000, "{}", errors(&streamed));

    // What is no ordinary file stays what it is; a link leads to what is replaced.
    let odd = scratch.path().join("odd");
    let _listener = std::os::unix::net::UnixListener::bind(&odd).expect("a socket");
    let refused = up.command(&["backup", odd.to_str().expect("text")]);
    assert_eq!(refused.status.code(), Some(64), "{}", errors(&refused));
    assert!(fs::metadata(&odd).expect("still there").file_type().is_socket());
    let link = scratch.path().join("link");
    symlink(&file, &link).expect("a link");
    succeeds(&up.command(&["backup", link.to_str().expect("text")]));
    assert!(fs::symlink_metadata(&link).expect("still there").is_symlink());

    let running = up.command(&["restore", path, "--force"]);
    assert_eq!(running.status.code(), Some(69), "{}", errors(&running));
    assert_eq!(up.stop(), Some(0));
    let offline = scratch.path().join("offline.tar.zst");
    let offline = offline.to_str().expect("our paths are text");
    succeeds(&command(&data, &["backup", offline]));

    let full = command(&data, &["restore", path]);
    assert_eq!(full.status.code(), Some(64), "{}", errors(&full));
    assert!(errors(&full).contains("--force"), "{}", errors(&full));

    fs::rename(&data, scratch.path().join("lost")).expect("lost");
    let cut = scratch.path().join("cut.tar.zst");
    let whole = fs::read(&file).expect("read");
    fs::write(&cut, &whole[..whole.len() - 100]).expect("written");
    let refused = command(&data, &["restore", cut.to_str().expect("text")]);
    assert_eq!(refused.status.code(), Some(65), "{}", errors(&refused));

    for file in [path, offline] {
        let mut killed = hearth();
        killed.args(["restore", file, "--force"]).env("HEARTH_DATA", &data).stderr(Stdio::null());
        let mut killed = killed.spawn().expect("hearth runs");
        let _ = killed.kill();
        let _ = killed.wait();
        succeeds(&command(&data, &["restore", file, "--force"]));
        let mut up = Up::serving(&data, |_| {});
        for name in ["first", "second"] {
            succeeds(&up.command(&["invoke", name]));
        }
        assert_eq!(up.stop(), Some(0));
    }
}

/// A file system of a test's own.
struct SmallDisk(Scratch);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let scratch = Scratch::new();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=96m,mode=700", "hearth-test"]).arg(scratch.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(scratch)),
            _ => {
                skip("a full disk: no file system can be mounted here");
                None
            }
        }
    }

    fn fill(&self) {
        let mut file = File::create(self.0.path().join("filler")).expect("a file");
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn functions_can_be_removed_from_a_full_disk() {
    let Some(disk) = SmallDisk::mount() else { return };
    let data = disk.0.path().join("data");
    let mut up = Up::serving(&data, |_| {});
    for name in ["first", "second", "third"] {
        deploy(&up, name);
    }
    // A daemon that has just started: its write-ahead log has no room yet.
    assert_eq!(up.stop(), Some(0));
    let mut up = Up::serving(&data, |_| {});
    disk.fill();
    // A copy of the catalog has no room: whoever asks for a backup is told.
    let refused = up.command(&["backup", "-"]);
    assert_eq!(refused.status.code(), Some(1), "{}", errors(&refused));
    assert!(errors(&refused).contains("full"), "{}", errors(&refused));
    succeeds(&up.command(&["rm", "first"]));
    succeeds(&up.command(&["invoke", "second"]));
    disk.fill();
    succeeds(&up.command(&["rm", "second"]));
    assert_eq!(up.stop(), Some(0));
    disk.fill();
    // A start on a full disk takes the reserve; the first removal makes it again for the next one.
    let mut up = Up::serving(&data, |_| {});
    succeeds(&up.command(&["invoke", "third"]));
    succeeds(&up.command(&["rm", "third"]));
    let reserve = fs::metadata(data.join("reserve")).expect("kept");
    assert!(reserve.len() > 0, "there is room for the next removal");
    assert_eq!(up.stop(), Some(0));
    fs::remove_file(disk.0.path().join("filler")).expect("removed");
    drop(up);
}
