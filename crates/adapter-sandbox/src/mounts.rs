//! Small steps with mounts, shared by launcher and init.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use crate::sys::{self, MountAttributes};

/// What holds for everything an instance sees.
pub(crate) const READ_ONLY: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Device nodes must work as such.
pub(crate) const DEVICE: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

/// A copy of what is mounted at and below a path, attached nowhere.
pub(crate) fn detached_copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// Mounts a detached tree.
pub(crate) fn attach(mount: impl AsFd, at: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Shows a file or directory at another path, whose mount point is made.
pub(crate) fn bind(from: &Path, to: &Path, attributes: u64) -> io::Result<()> {
    if fs::metadata(from)?.is_dir() {
        fs::create_dir_all(to)?;
    } else {
        fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))?;
        fs::File::create(to)?;
    }
    let tree = detached_copy(from)?;
    let attributes = MountAttributes { set: attributes, private: true, ..Default::default() };
    sys::set_mount_attributes(&tree, attributes)?;
    attach(&tree, to)
}
