//! The launcher's mount namespaces.
//!
//! It works in a copy of the host's, where it builds roots that the host does not see. A launch
//! copies the current namespace for the new process, so that happens in a second one with next to
//! nothing in it: the host may have hundreds of mounts.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use rustix::{
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
        unmount,
    },
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

use crate::sys;

/// Both namespaces. The launcher is in the first whenever it is not in [`Views::apart`].
pub(crate) struct Views {
    host: File,
    bare: File,
}

impl Views {
    /// Enters the first. `place` is an empty directory.
    pub(crate) fn enter(place: &Path) -> io::Result<Self> {
        sys::unshare(UnshareFlags::NEWNS)?;
        // What the host mounts later must be seen here, what is mounted here not there.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        let host = File::open("/proc/self/ns/mnt")?;

        sys::unshare(UnshareFlags::NEWNS)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount(
            "bare",
            place,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755,size=64k",
        )?;
        for name in ["proc", "mnt"] {
            fs::create_dir(place.join(name))?;
        }
        // The kernel mounts a new /proc only for those who see an old one.
        mount_bind_recursive("/proc", place.join("proc"))?;
        rustix::process::chdir(place)?;
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        let views = Self { bare: File::open("/proc/self/ns/mnt")?, host };
        views.switch(&views.host)?;
        Ok(views)
    }

    /// Does something in the bare namespace: the fork of a launch.
    pub(crate) fn apart<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        self.switch(&self.bare)?;
        let result = work();
        self.switch(&self.host)?;
        Ok(result)
    }

    fn switch(&self, to: &File) -> io::Result<()> {
        Ok(move_into_link_name_space(std::os::fd::AsFd::as_fd(to), Some(LinkNameSpaceType::Mount))?)
    }
}
