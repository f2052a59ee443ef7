//! What is written into groups.
//!
//! Version 1 counts the buffers of sockets by themselves, and only in groups that had a limit for
//! them before the first socket was made. So there the memory that a function was promised is
//! divided: a sixteenth is for its sockets, TCP and UDP alike, the rest for everything else.
//! Version 2 counts both together.

use std::{io, path::Path};

use model::Limits;

use super::{
    files::{if_there, read_number, write},
    place::{Place, Version},
};

/// The usual length of the time slices in which processor time is given out.
const PERIOD_MICROS: u64 = 100_000;

/// An init is one more process than the function was promised.
const INIT: u32 = 1;

/// What part of an instance's memory its sockets may use, where they are counted by themselves.
const SOCKETS: u64 = 16;

/// The file of version 1 for sockets. It is missing where the kernel was built without it.
const SOCKET_MEMORY: &str = "memory.kmem.tcp.limit_in_bytes";

/// Whether the buffers of sockets below this place count as memory.
pub(super) fn are_sockets_counted(Place { directory, version }: &Place) -> bool {
    *version == Version::V2 || directory.join(SOCKET_MEMORY).exists()
}

/// Gives a controller's group the limits of an instance; only what differs from the old ones.
pub(super) fn apply(
    controller: &str,
    (directory, version): (&Path, Version),
    old: Option<&Limits>,
    new: &Limits,
) -> io::Result<()> {
    let differs = |value: fn(&Limits) -> u64| old.map(value) != Some(value(new));
    match controller {
        "memory" if differs(|limits| limits.memory_bytes) => {
            limit_memory(directory, version, new.memory_bytes)?;
            match version {
                // Half a runtime is of no use: all or none of its processes die.
                Version::V2 => write(directory, "memory.oom.group", 1),
                Version::V1 => Ok(()),
            }
        }
        "cpu" if differs(|limits| limits.cpus_milli.into()) => limit_cpu(directory, version, new),
        "pids" if differs(|limits| limits.pids.into()) => {
            write(directory, "pids.max", new.pids.saturating_add(INIT))
        }
        _ => Ok(()),
    }
}

fn limit_cpu(directory: &Path, version: Version, limits: &Limits) -> io::Result<()> {
    let quota = u64::from(limits.cpus_milli) * PERIOD_MICROS / 1000;
    match version {
        Version::V2 => write(directory, "cpu.max", format!("{quota} {PERIOD_MICROS}")),
        Version::V1 => {
            write(directory, "cpu.cfs_period_us", PERIOD_MICROS)?;
            write(directory, "cpu.cfs_quota_us", quota)
        }
    }
}

/// Limits the memory of all that is in a group and below it. No swap.
pub(super) fn limit_memory(directory: &Path, version: Version, bytes: u64) -> io::Result<()> {
    match version {
        Version::V2 => {
            write(directory, "memory.max", bytes)?;
            if_there(write(directory, "memory.swap.max", 0))
        }
        Version::V1 => limit_memory_v1(directory, bytes),
    }
}

fn limit_memory_v1(directory: &Path, bytes: u64) -> io::Result<()> {
    let sockets = bytes / SOCKETS;
    let rest = match write(directory, SOCKET_MEMORY, sockets) {
        Ok(()) => bytes - sockets,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bytes,
        Err(error) => return Err(error),
    };
    let memory = || write(directory, "memory.limit_in_bytes", rest);
    // Memory and swap together: no swap. The file is missing where swap is not accounted.
    let both = || if_there(write(directory, "memory.memsw.limit_in_bytes", rest));
    // Both together must never be less than memory alone.
    let is_rise = read_number(directory, "memory.limit_in_bytes").is_some_and(|old| old < rest);
    if is_rise { both().and_then(|()| memory()) } else { memory().and_then(|()| both()) }
}
