//! The first process of a container, where that is this program.
//!
//! Every process whose parent has ended becomes a child of the first one, which must collect it when
//! it ends, too. A daemon cannot: it would take the statuses that it waits for itself. So the first
//! process only starts the daemon, passes signals on to it, collects what ends, and ends as the
//! daemon does.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// How long what a daemon leaves behind may take to clean up: with the first process, everything
/// ends.
const CLEANING: Duration = Duration::from_secs(15);

/// What is passed on, by its number.
const PASSED: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// Whether this process is the first one.
pub(crate) fn is_first() -> bool {
    rustix::process::getpid().is_init()
}

/// The first process's whole life.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hearth: could not start the daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ended = signal(SignalKind::child())?;
        let mut arguments = std::env::args_os();
        let mut command = Command::new("/proc/self/exe");
        command.arg0(arguments.next().unwrap_or_else(|| "hearth".into())).args(arguments);
        // A terminal sends its signals to a whole group, and the daemon must have each only once.
        let child = command.process_group(0).spawn()?;
        let daemon = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let daemon = daemon.expect("a child has a process id");
        for passed in PASSED {
            let mut signals = signal(SignalKind::from_raw(passed.as_raw()))?;
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    // It may have ended just now.
                    let _ = kill_process(daemon, passed);
                }
            });
        }
        let status = loop {
            if let Some(status) = collect(daemon).0 {
                break status;
            }
            ended.recv().await;
        };
        let cleaned = async {
            while collect(daemon).1 {
                ended.recv().await;
            }
        };
        // What is left then ends with this process.
        let _ = timeout(CLEANING, cleaned).await;
        let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
        Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
    })
}

/// Collects all that has ended. The daemon's status, if it is among it, and whether any child is
/// left.
fn collect(daemon: Pid) -> (Option<WaitStatus>, bool) {
    let mut found = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == daemon => found = Some(status),
            Ok(Some(_)) => {}
            Ok(None) => return (found, true),
            Err(_) => return (found, false),
        }
    }
}
