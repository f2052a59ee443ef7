//! Runs an install step as long as somebody wants it.
//!
//! A daemon that is killed cannot end what it has started, and an install step starts much. So there
//! is a process between them, which notices the end of a pipe, however its other end was closed.

use std::{
    io::Read,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitCode, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// The hidden first argument that makes the program a supervisor; the second is for a shell.
pub(crate) const ARGUMENT: &str = "__supervise";

/// The supervisor's whole life: runs a line with a shell, in a process group of its own, and ends
/// that group with the line, or when standard input ends.
pub(crate) fn main() -> ExitCode {
    let Some(line) = std::env::args_os().nth(2) else {
        eprintln!("this command is for the daemon's own use");
        return ExitCode::from(64);
    };
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
    std::thread::spawn(move || {
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
}
