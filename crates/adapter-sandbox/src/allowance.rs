//! What an instance may take of what the kernel counts for each user.
//!
//! Such a count is kept for a user in a user namespace, and for the namespace's owner in the
//! namespace around it, and so on up to the host; each step has a maximum. Resource limits become
//! that maximum when a namespace is made (Linux 5.14), the rest is written from inside.
//!
//! As root each instance has an owner of its own ([`crate::ids`]), and so what the kernel gives to
//! any user. Without root everything counts for the user who runs Hearth: all instances together
//! then may take a half, so that the user's other programs go on, and one of them an eighth of it.

use std::{fs, io, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The settings of the current user namespace, whoever has mounted this.
const SETTINGS: &str = "/proc/sys/user";

/// How much of everything. Kernel memory itself is on the account of the instance's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    inotify_instances: u64,
    inotify_watches: u64,
    /// Signals that wait for a process, and POSIX timers, each of which keeps one ready.
    signals: u64,
    /// Bytes of POSIX message queues. One with the usual attributes needs 82 KiB.
    message_bytes: u64,
    /// Bytes that may not be swapped out: of `mlock` for each process, of `SHM_LOCK` together.
    locked_bytes: u64,
}

impl Allowance {
    /// For an instance with an owner of its own: what the kernel gives to a user unless somebody
    /// has told it otherwise, less for watches, each of which takes a kilobyte, and for signals.
    pub(crate) const OWN: Self = Self {
        inotify_instances: 128,
        inotify_watches: 8192,
        signals: 4096,
        message_bytes: 819_200,
        locked_bytes: 8 << 20,
    };

    /// What all instances of a user may take together who is not root.
    pub(crate) fn of_all() -> Self {
        let Self { inotify_instances, inotify_watches, .. } = Self::OWN;
        let limit = |resource| getrlimit(resource).current.unwrap_or(u64::MAX);
        let of_user = Self {
            inotify_instances: read("max_inotify_instances").unwrap_or(inotify_instances),
            inotify_watches: read("max_inotify_watches").unwrap_or(inotify_watches),
            signals: limit(Resource::Sigpending),
            message_bytes: limit(Resource::Msgqueue),
            locked_bytes: limit(Resource::Memlock),
        };
        of_user.part(2)
    }

    /// What one instance may take where all have the same owner.
    pub(crate) fn of_one(self) -> Self {
        let part = self.part(8);
        let most = Self::OWN;
        Self {
            inotify_instances: part.inotify_instances.min(most.inotify_instances),
            inotify_watches: part.inotify_watches.min(most.inotify_watches),
            signals: part.signals.min(most.signals),
            message_bytes: part.message_bytes.min(most.message_bytes),
            locked_bytes: part.locked_bytes.min(most.locked_bytes),
        }
    }

    fn part(self, divisor: u64) -> Self {
        Self {
            inotify_instances: (self.inotify_instances / divisor).max(1),
            inotify_watches: (self.inotify_watches / divisor).max(1),
            signals: (self.signals / divisor).max(1),
            message_bytes: self.message_bytes / divisor,
            locked_bytes: self.locked_bytes / divisor,
        }
    }

    /// Sets the resource limits of this process, and so of the user namespaces that it makes.
    pub(crate) fn limit(&self) -> io::Result<()> {
        for (resource, limit) in [
            (Resource::Sigpending, self.signals),
            (Resource::Msgqueue, self.message_bytes),
            (Resource::Memlock, self.locked_bytes),
        ] {
            let highest = getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let limit = Some(limit.min(highest));
            setrlimit(resource, Rlimit { current: limit, maximum: limit })?;
        }
        Ok(())
    }

    /// Sets the rest for the user namespace that this process is in, which it must be root of.
    ///
    /// # Errors
    ///
    /// Where `/proc/sys` is read-only.
    pub(crate) fn write(&self) -> io::Result<()> {
        write("max_inotify_instances", self.inotify_instances)?;
        write("max_inotify_watches", self.inotify_watches)
    }
}

/// Leaves a user namespace without others below it. Without one of those nobody in an instance can
/// make a namespace of any other kind.
///
/// # Errors
///
/// Where `/proc/sys` is read-only.
pub(crate) fn forbid_namespaces() -> io::Result<()> {
    write("max_user_namespaces", 0)
}

/// Whether a user namespace's settings can be written: not where `/proc/sys` is read-only.
pub(crate) fn can_be_written() -> io::Result<()> {
    let setting = Path::new(SETTINGS).join("max_inotify_instances");
    // The check is of the mount: a namespace's own root is let in by the kernel.
    let flags = rustix::fs::statvfs(&setting)?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    Ok(())
}

fn read(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new(SETTINGS).join(name)).ok()?.trim().parse().ok()
}

/// The kernel keeps these as 32 bits with a sign.
fn write(name: &str, value: u64) -> io::Result<()> {
    let value = value.min(i32::MAX.cast_unsigned().into());
    fs::write(Path::new(SETTINGS).join(name), value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_divided_is_never_nothing_and_never_more_than_one_has_alone() {
        let tiny = Allowance {
            inotify_instances: 3,
            inotify_watches: 1 << 30,
            signals: 0,
            message_bytes: u64::MAX,
            locked_bytes: 0,
        };
        let one = tiny.of_one();
        assert_eq!((one.inotify_instances, one.signals, one.locked_bytes), (1, 1, 0));
        assert_eq!(one.inotify_watches, Allowance::OWN.inotify_watches);
        assert_eq!(one.message_bytes, Allowance::OWN.message_bytes);
    }
}
