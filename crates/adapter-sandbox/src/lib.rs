//! Runs instances as processes in Linux namespaces: no engine, no image, a few milliseconds.
//!
//! ```text
//! daemon ──► launcher ──► init (pid 1 of the instance) ──► worker
//!  tokio      one thread   a fork of the launcher           the function's program
//! ```
//!
//! The daemon has threads and must not fork, so it asks the *launcher*, a process of its own, for
//! instances (`wire`). Each instance has new user, mount, PID, IPC, UTS, cgroup and network
//! namespaces, a read-only root made of the host's `/usr` (`template`, `root`), limits (`cgroup`) and a
//! system call filter (`seccomp`). When the daemon dies, the launcher removes everything; when
//! the launcher dies, the kernel kills the instances, and the next launcher removes what is left
//! (`owner`).
//!
//! Without root the launcher first makes itself root of a user namespace of its own. What is weaker
//! then is listed by [`SandboxAdapter::weaknesses`].
//!
//! Not here: images, layers, or anything that outlives the daemon.

mod adapter;
mod addresses;
mod allowance;
mod cgroup;
mod fault;
mod firewall;
mod flows;
mod idmap;
mod ids;
mod init;
mod lasting;
mod launch;
mod launcher;
mod mounts;
mod nameservers;
mod netlink;
mod network;
mod owner;
mod priority;
mod probe;
mod reach;
mod root;
mod seccomp;
mod sys;
mod template;
mod uplinks;
mod usage;
mod views;
mod wire;
mod worker;
mod zygote;

pub use adapter::{Config, SandboxAdapter};
pub use ids::ARTIFACT_OWNER;
pub use lasting::LastingSandboxAdapter;
pub use launcher::launcher_main;
pub use probe::{Finding, Probe, probe};
pub use reach::{Subnet, SubnetError};
