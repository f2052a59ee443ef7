//! What all instances of an owner together may take from the host.

use std::io;

use super::{
    files::{read_number, write},
    place::{Place, Version},
};

/// What is left to the daemon, the launcher and everything else on the host, at least.
const LEAST_RESERVE: u64 = 256 << 20;

/// What all instances together may use of this much memory: all but the reserve, which is usually
/// a tenth and at least 256 MiB, and never more than half of it.
pub(super) fn share(memory: u64, reserve: Option<u64>) -> u64 {
    let reserve = reserve.unwrap_or_else(|| LEAST_RESERVE.max(memory / 10));
    memory - reserve.min(memory / 2)
}

/// The memory there is: the machine's, or what the groups around the owner's leave of it.
pub(super) fn memory(place: &Place, machine: u64) -> u64 {
    let file = match place.version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    // A group without a limit says so with a word, or with a number that no machine has.
    let around = place.directory.ancestors().skip(1);
    let around = around.take_while(|directory| directory.join("cgroup.procs").exists());
    around.filter_map(|directory| read_number(directory, file)).chain([machine]).min().unwrap_or(0)
}

/// What the instances of all owners together weigh beside the daemon and the rest of the host. Half
/// of the usual weight, which is 1024 in version 1 and 100 in version 2.
const SHARES: u32 = 512;
const WEIGHT: u32 = 50;

/// Has the daemon go first where both it and instances want a processor.
pub(super) fn weigh(place: &Place) -> io::Result<()> {
    let Some(common) = place.directory.parent() else { return Ok(()) };
    let weighed = match place.version {
        Version::V1 => write(common, "cpu.shares", SHARES),
        Version::V2 => write(common, "cpu.weight", WEIGHT),
    };
    match weighed {
        // Another user made it, and has weighed it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        weighed => weighed,
    }
}
