use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{InstanceId, Limits, Network};

/// Where things are inside an instance (Open Runtimes specification, 0.3).
pub mod paths {
    /// The runtime's files, and the directory its worker starts in.
    pub const SERVER: &str = "/usr/local/server";
    /// The function's code.
    pub const FUNCTION: &str = "/usr/local/server/src/function";
    /// The artifact as it was built, read-only; the function directory is a writable view of it.
    pub const CODE: &str = "/mnt/code";
}

/// Everything an adapter must know to start an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Chosen by whoever launches; no other instance of the adapter has it.
    pub id: InstanceId,
    /// The program's absolute path and its arguments. `{server}` in an argument stands for the
    /// runtime's directory as seen from inside.
    pub command: Vec<String>,
    /// The command line of a zygote: a program that has loaded what workers of this runtime need, and
    /// forks them (docs/protocols/worker.md). An adapter that has no use for it runs `command`, and
    /// so does one whose zygote is not ready or fails.
    pub zygote: Option<Vec<String>>,
    /// The whole environment: nothing is inherited.
    pub environment: Vec<(String, String)>,
    /// The runtime's directory on the host, seen read-only at [`paths::SERVER`].
    pub server: PathBuf,
    /// Directories outside `/usr` that the program needs, seen read-only at the same path.
    pub programs: Vec<PathBuf>,
    /// What it may use.
    pub limits: Limits,
    /// What it can reach.
    pub network: Network,
    /// A socket of the host that the instance must be able to connect to.
    pub socket: Option<InstanceSocket>,
}

/// A Unix socket on which the host listens for one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSocket {
    /// The environment variable in which the adapter tells the instance the path as seen from inside.
    pub variable: String,
    /// The socket's path on the host. Its directory holds nothing else.
    pub path: PathBuf,
}

/// An instance that an adapter has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The id of its launch specification.
    pub id: InstanceId,
    /// Its first process as the host sees it, where the engine has such a thing.
    pub pid: Option<u32>,
}

/// What an instance uses, all its processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Memory at this moment, as its limit counts it where the engine keeps one.
    pub memory_bytes: u64,
    /// Processor time since it was launched.
    pub cpu_time: Duration,
}

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What its main process ended with.
    pub status: ExitStatus,
    /// Whether the kernel killed one of its processes because the memory limit was reached.
    pub out_of_memory: bool,
}

/// What a process ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// The engine does not know: the instance was found gone.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.out_of_memory, self.status) {
            (true, _) => f.write_str("ran out of memory and was killed"),
            (false, ExitStatus::Code(code)) => write!(f, "exited with status {code}"),
            (false, ExitStatus::Signal(signal)) => write!(f, "was killed by signal {signal}"),
            (false, ExitStatus::Unknown) => f.write_str("is gone"),
        }
    }
}
