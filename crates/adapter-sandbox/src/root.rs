//! From a template to the root of one instance: the same files, with inodes of its own.
//!
//! Whoever may open a file may watch it, lock it or lease it, and the kernel keeps all of that with
//! the inode. A mount of the host's `/usr` in every instance would so let each see which programs
//! the host and other instances run, and lock the files they lock. So everything that an instance
//! can open, and others too, is below an overlay of its own: watches and locks stay in it, while
//! the contents are in memory once.
//!
//! A template is a file system that holds the layers:
//!
//! ```text
//! base/       the root's own files, and empty mount points
//! dev/        devices, if we may make them: of these the launcher makes an overlay
//! parts/N     what is shown of the host
//! tops/N      mount points that are missing in part N
//! empty/      an overlay needs two layers
//! root/       where an instance's root is mounted, to become its root
//! ```

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, mount,
};

use crate::{
    fault::{Fault, Step},
    mounts::{attach, detached_copy},
};

/// Where a template is attached while an instance's root is made from it.
pub(crate) const PLACE: &str = "/mnt";

/// What a template is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Whether there are overlays. If not, the template has the parts below `base`, and instances
    /// share its inodes.
    pub(crate) is_private: bool,
    pub(crate) parts: Vec<Part>,
}

/// Something of the host that an instance sees. What is mounted below another part comes later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// What is shown, in the template.
    pub(crate) layer: PathBuf,
    /// What is laid over it, in the template.
    pub(crate) top: PathBuf,
    /// Where it is shown, in the root.
    pub(crate) at: PathBuf,
    /// False for what has no overlay: a file by itself, or what the kernel refuses one for.
    pub(crate) has_overlay: bool,
}

/// An instance's root before it is one: detached mounts.
pub(crate) struct Root {
    pub(crate) template: OwnedFd,
    /// None if the parts have the host's.
    pub(crate) devices: Option<OwnedFd>,
    pub(crate) layout: Rc<Layout>,
}

impl Root {
    /// The descriptors that must stay open until [`Self::assemble`].
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.template.as_fd()).chain(self.devices.as_ref().map(AsFd::as_fd))
    }

    /// Mounts everything, in a mount namespace of one's own. Returns where it is.
    pub(crate) fn assemble(&self) -> Result<PathBuf, Fault> {
        let place = Path::new(PLACE);
        attach(&self.template, place).step("mount the root")?;
        let root = if self.layout.is_private {
            let root = place.join("root");
            overlay(&place.join("base"), &place.join("empty"), &root).step("mount the root")?;
            root
        } else {
            place.to_owned()
        };
        for part in &self.layout.parts {
            let (layer, at) = (place.join(&part.layer), root.join(&part.at));
            let shown = if part.has_overlay {
                overlay(&place.join(&part.top), &layer, &at)
            } else {
                detached_copy(&layer).and_then(|copy| attach(copy, &at))
            };
            shown.step(format!("show /{}", part.at.display()))?;
        }
        if let Some(devices) = &self.devices {
            attach(devices, &root.join("dev")).step("show devices")?;
        }
        Ok(root)
    }
}

/// An overlay that nobody can write to, for whoever is root of the current user namespace.
pub(crate) fn overlay(upper: &Path, lower: &Path, at: &Path) -> io::Result<()> {
    let mut options = b"userxattr,lowerdir=".to_vec();
    options.extend(escaped(upper));
    options.push(b':');
    options.extend(escaped(lower));
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount("hearth", at, "overlay", flags, CString::new(options)?.as_c_str())?)
}

/// A detached overlay through which devices can be opened: only the host's root can make one.
pub(crate) fn overlay_of_devices(upper: &Path, lower: &Path) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let layers = [upper.as_os_str().as_bytes(), lower.as_os_str().as_bytes()].join(&b':');
    fsconfig_set_string(context.as_fd(), "lowerdir", CString::new(layers)?.as_c_str())?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A path as the overlay's options have it.
fn escaped(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes().iter();
    bytes
        .flat_map(|byte| match byte {
            b'\\' | b':' | b',' => vec![b'\\', *byte],
            byte => vec![*byte],
        })
        .collect()
}
