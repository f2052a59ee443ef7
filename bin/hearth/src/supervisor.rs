//! Runs an install step as long as somebody wants it.
//!
//! A daemon that is killed cannot end what it has started, and an install step starts much. So there
//! is a process between them, which notices the end of a pipe, however its other end was closed.

use std::{
    fs,
    io::Read,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group};
use tokio::time::Instant;

/// The hidden first argument that makes the program a supervisor; the second is for a shell.
pub(crate) const ARGUMENT: &str = "__supervise";

/// How long the supervisor tries to end what makes new processes as fast as it kills them.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a process that was killed has, before the supervisor looks again.
const MOMENT: Duration = Duration::from_millis(1);

/// The supervisor's whole life: runs a line with a shell, in a process group of its own, and ends
/// that group and whatever left it with the line, or when standard input ends.
pub(crate) fn main() -> ExitCode {
    let Some(line) = std::env::args_os().nth(2) else {
        eprintln!("this command is for the daemon's own use");
        return ExitCode::from(64);
    };
    // A process that leaves the group, and whose parent ends, becomes a child of this one.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let mut shell = Command::new("/bin/sh");
    let started = shell.arg("-c").arg(line).stdin(Stdio::null()).process_group(0).spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            eprintln!("could not start a shell: {error}");
            return ExitCode::FAILURE;
        }
    };
    let group = group_of(&child);
    thread::spawn(move || {
        // Nothing is ever sent; an error ends it, too.
        let _ = std::io::stdin().read(&mut [0]);
        end(group);
        std::process::exit(1);
    });
    let status = child.wait();
    // What it left in the background is not wanted.
    end(group);
    let code = status
        .ok()
        .and_then(|status| status.code().or_else(|| status.signal().map(|signal| 128 + signal)));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn group_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn end(group: Option<Pid>) {
    if let Some(group) = group {
        // It may be gone.
        let _ = kill_process_group(group, Signal::KILL);
    }
    end_children();
}

/// Kills the children of this process until there are none: those of a child that ends become its
/// own. What is still there after [`PATIENCE`] is left.
fn end_children() {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for child in children() {
            // It may be gone.
            let _ = kill_process(child, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => thread::sleep(MOMENT),
            Err(_) => return,
        }
    }
}

/// The children of this process.
fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_own = |pid: &i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        // After the name, which may have anything in it: ") STATE PARENT …".
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        parent == Some(own.as_str())
    };
    pids.filter(is_own).filter_map(Pid::from_raw).collect()
}
