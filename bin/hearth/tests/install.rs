//! What an install step leaves behind, which is nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A process that has left the group, the session and its parent, with a name that is not UTF-8.
/// The line goes on once its id is in a file.
const ESCAPE: &str = r#"
    program=$(printf 'left\377) R 1')
    cp /bin/sleep "$program"
    (setsid setsid sh -c 'echo $$ >new; exec "./$0" 1000' "$program" >/dev/null 2>&1 &)
    until grep -aqs left "/proc/$(cat new 2>/dev/null)/comm"; do sleep 0.01; done
    mv new pid
"#;

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hearth-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a new directory");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts a line as an install step is started: it is wanted until its standard input ends.
fn start(folder: &Folder, line: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.args(["__supervise", line]).current_dir(&folder.0).stdin(Stdio::piped());
    command.spawn().expect("the program runs")
}

/// Whether the process that escaped is still there. If so, it ends now.
fn is_left(folder: &Folder) -> bool {
    let pid = fs::read_to_string(folder.0.join("pid")).expect("it has started");
    let is_left = Path::new("/proc").join(pid.trim()).exists();
    if is_left {
        let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
    }
    is_left
}

#[test]
fn a_process_that_leaves_its_session_ends_with_the_step() {
    let folder = Folder::new("ends");
    let mut step = start(&folder, &format!("{ESCAPE} exit 3"));
    // `wait` would close it.
    let _wanted = step.stdin.take();
    assert_eq!(step.wait().expect("an end").code(), Some(3));
    assert!(!is_left(&folder));
}

#[test]
fn a_process_that_leaves_its_session_ends_when_nobody_waits_for_the_step() {
    let folder = Folder::new("cancelled");
    let mut step = start(&folder, &format!("{ESCAPE} sleep 1000"));
    while !folder.0.join("pid").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(step.stdin.take());
    assert!(!step.wait().expect("an end").success());
    assert!(!is_left(&folder));
}
