//! How a template is built: the host's programs, read-only, with the runtime's files, and nothing
//! else of the host.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt, fs::symlink},
    path::{Component, Path, PathBuf},
};

use model::{LaunchSpec, Network, paths};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::{Host, Snapshot};
use crate::{
    fault::{Fault, Step},
    mounts::{DEVICE, READ_ONLY, bind},
    root::{Layout, Part, overlay},
    sys::{self, MountAttributes},
};

/// What a build fails with if the kernel refuses the overlay that it cannot do without.
pub(super) const NO_OVERLAY: i32 = libc::ENOTSUP;

/// The devices that programs expect, with their numbers (Linux, admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];

/// Where programs keep what is neither secret nor particular to this host. Names that end in `*`
/// stand for all that begin so.
const CONFIGURATION: [&str; 11] = [
    "alternatives",
    "ca-certificates",
    "crypto-policies",
    "dotnet",
    "java*",
    "ld.so.cache",
    "localtime",
    "mono",
    "php*",
    "pki",
    "ssl",
];

/// Where each instance has something of its own, which would hide what is shown there.
const OWN: [&str; 4] = ["/tmp", "/dev", "/proc", "/run/hearth"];

const PASSWD: &str = "root:x:0:0:root:/root:/usr/sbin/nologin\n\
    hearth:x:1000:1000:hearth:/tmp:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nhearth:x:1000:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1 localhost hearth\n::1 localhost\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// No mount points are missing.
const NOTHING: &str = "empty";

/// A template that is being built.
pub(super) struct Builder<'a> {
    place: &'a Path,
    host: &'a Host,
    /// Where the host has mounts.
    mounts: Vec<PathBuf>,
    built: Built,
}

/// What has been built.
#[derive(Default)]
pub(super) struct Built {
    pub(super) layout: Layout,
    pub(super) snapshot: Snapshot,
    pub(super) has_devices: bool,
    pub(super) warnings: Vec<String>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(place: &'a Path, host: &'a Host, is_private: bool) -> Self {
        let layout = Layout { is_private, ..Layout::default() };
        Self { place, host, mounts: mount_points(), built: Built { layout, ..Built::default() } }
    }

    pub(super) fn build(mut self, spec: &LaunchSpec) -> Result<Built, Fault> {
        fs::create_dir_all(self.place).step("make a directory for a root")?;
        let flags = MountFlags::NOSUID;
        // The host's root makes devices in it, which nobody but an instance ever sees.
        let flags = if self.host.is_root { flags } else { flags | MountFlags::NODEV };
        mount("hearth", self.place, "tmpfs", flags, c"mode=0755,size=64m").step("mount a root")?;
        for name in ["base", "dev", "parts", "tops", NOTHING, "root"] {
            fs::create_dir(self.place.join(name)).step("make a root")?;
        }
        self.system().step("show the host's programs")?;
        self.configuration(spec.network).step("write /etc")?;
        for directory in ["proc", "tmp", "mnt/code", "run/hearth", "var", "dev"] {
            fs::create_dir_all(self.base().join(directory)).step("make mount points")?;
        }
        symlink("/tmp", self.base().join("var/tmp")).step("make mount points")?;
        self.devices().step("show devices")?;
        for directory in &spec.programs {
            self.programs(directory).step(format!("show {}", directory.display()))?;
        }
        self.show_at(&spec.server, Path::new(paths::SERVER), NOTHING)
            .step(format!("show {}", spec.server.display()))?;
        self.freeze().step("make a root read-only")?;
        Ok(self.built)
    }

    fn base(&self) -> PathBuf {
        self.place.join("base")
    }

    fn is_private(&self) -> bool {
        self.built.layout.is_private
    }

    fn system(&mut self) -> io::Result<()> {
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            self.show_if_there(&Path::new("/").join(name))?;
        }
        // The runtime's directory must be mounted in it, and the host may have no place for that.
        let [usr, local] = ["/usr", "/usr/local"].map(Path::new);
        fs::create_dir_all(self.base().join("usr/local/server"))?;
        if !self.is_private() {
            self.show_children(usr, "local")?;
            return self.show_children(local, "server");
        }
        if !usr.exists() {
            return Ok(());
        }
        fs::create_dir_all(self.place.join("tops/usr/local/server"))?;
        self.show_at(usr, usr, "tops/usr")?;
        // On some hosts it is elsewhere.
        if local.exists() && (local.is_symlink() || self.mounts.iter().any(|path| path == local)) {
            fs::create_dir_all(self.place.join("tops/local/server"))?;
            self.show_at(&local.canonicalize()?, local, "tops/local")?;
        }
        Ok(())
    }

    fn show_children(&mut self, directory: &Path, left_out: &str) -> io::Result<()> {
        let children = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            children => children?,
        };
        for child in children {
            let child = child?;
            if child.file_name() != left_out {
                self.show(&child.path())?;
            }
        }
        Ok(())
    }

    fn show_if_there(&mut self, path: &Path) -> io::Result<()> {
        match self.show(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Every mount costs time at each launch, so links are made again and what is empty is not
    /// mounted.
    fn show(&mut self, path: &Path) -> io::Result<()> {
        let found = fs::symlink_metadata(path)?;
        let inside = self.base().join(relative(path));
        if found.is_symlink() {
            fs::create_dir_all(inside.parent().unwrap_or(self.place))?;
            return symlink(fs::read_link(path)?, inside);
        }
        if found.is_dir() && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) {
            return fs::create_dir_all(inside);
        }
        self.show_at(path, path, NOTHING)
    }

    /// Shows a file or directory of the host, with all that is mounted below it, under what is in
    /// `top`.
    fn show_at(&mut self, from: &Path, at: &Path, top: &str) -> io::Result<()> {
        let at = relative(at);
        if !self.is_private() {
            return bind(from, &self.base().join(at), READ_ONLY);
        }
        let layer = self.next_layer();
        bind(from, &self.place.join(&layer), READ_ONLY)?;
        make_mount_point(&self.place.join(&layer), &self.base().join(at))?;
        self.add(layer.clone(), at.to_owned(), top)?;
        let below: Vec<_> = self
            .mounts
            .iter()
            .filter_map(|path| path.strip_prefix(from).ok())
            .filter(|path| !path.as_os_str().is_empty())
            .map(Path::to_owned)
            .collect();
        for path in below {
            let is_elsewhere = Path::new("/").join(at).join(&path).starts_with("/usr/local/server")
                || at == Path::new("usr") && path.starts_with("local") && self.has_own_local();
            // It may be out of sight, below another mount.
            if !is_elsewhere && self.place.join(&layer).join(&path).exists() {
                self.add(layer.join(&path), at.join(&path), NOTHING)?;
            }
        }
        Ok(())
    }

    fn next_layer(&self) -> PathBuf {
        Path::new("parts").join(self.built.layout.parts.len().to_string())
    }

    fn has_own_local(&self) -> bool {
        self.mounts.iter().any(|path| path == Path::new("/usr/local"))
    }

    fn add(&mut self, layer: PathBuf, at: PathBuf, top: &str) -> io::Result<()> {
        let (shown, top) = (self.place.join(&layer), PathBuf::from(top));
        let is_directory = shown.is_dir();
        let mut has_overlay = false;
        if is_directory {
            let place = self.place.join("root");
            has_overlay = overlay(&self.place.join(&top), &shown, &place).is_ok();
            if has_overlay {
                unmount(&place, UnmountFlags::DETACH)?;
            } else if top != Path::new(NOTHING) {
                return Err(io::Error::from_raw_os_error(NO_OVERLAY));
            }
        }
        if !has_overlay {
            let at = at.display();
            self.built.warnings.push(format!(
                "/{at} is shown to instances without an overlay of their own{}: they can watch \
                 who opens it, and lock it",
                if is_directory { ", which the kernel refuses" } else { ", being a mounted file" }
            ));
        }
        self.built.layout.parts.push(Part { layer, top, at, has_overlay });
        Ok(())
    }

    fn programs(&mut self, directory: &Path) -> io::Result<()> {
        if directory.starts_with("/usr") {
            return Ok(());
        }
        if OWN.iter().any(|own| directory.starts_with(own)) {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        // A link on the way would lead out of the root.
        let mut way = self.base();
        for part in relative(directory).components() {
            if !matches!(part, Component::Normal(_)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            way.push(part);
            match fs::create_dir(&way) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ if fs::symlink_metadata(&way)?.is_dir() => {}
                _ => return Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        self.show_at(directory, directory, NOTHING)
    }

    fn configuration(&mut self, network: Network) -> io::Result<()> {
        let etc = self.base().join("etc");
        fs::create_dir_all(&etc)?;
        for (name, text) in [
            ("passwd", PASSWD),
            ("group", GROUP),
            ("hosts", HOSTS),
            ("nsswitch.conf", NSSWITCH),
            ("hostname", "hearth\n"),
            ("resolv.conf", &self.host.nameservers.configuration(network)),
        ] {
            fs::write(etc.join(name), text)?;
        }
        for entry in fs::read_dir("/etc")? {
            let entry = entry?;
            let name = entry.file_name();
            if !name.to_str().is_some_and(is_configuration) {
                continue;
            }
            let (from, to) = (entry.path(), etc.join(name));
            match self.built.snapshot.take(&from, &to) {
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    if to.is_dir() {
                        fs::remove_dir_all(&to)?;
                    }
                    self.show_at(&from, &from, NOTHING)?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Nodes of one's own have inodes of their own, and an overlay gives those to each instance.
    fn devices(&mut self) -> io::Result<()> {
        let (own, base) = (self.place.join("dev"), self.base().join("dev"));
        for directory in [&own, &base] {
            fs::create_dir_all(directory.join("shm"))?;
            for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")]
            {
                symlink(format!("/proc/self/fd{target}"), directory.join(name))?;
            }
        }
        self.built.has_devices = self.is_private() && self.host.is_root && make_devices(&own);
        if self.built.has_devices {
            return Ok(());
        }
        for (name, _, _) in DEVICES {
            let device = Path::new("/dev").join(name);
            if !self.is_private() {
                bind(&device, &base.join(name), DEVICE)?;
                continue;
            }
            let layer = self.next_layer();
            bind(&device, &self.place.join(&layer), DEVICE)?;
            fs::File::create(base.join(name))?;
            let (top, at) = (NOTHING.into(), Path::new("dev").join(name));
            self.built.layout.parts.push(Part { layer, top, at, has_overlay: false });
        }
        Ok(())
    }

    fn freeze(&self) -> io::Result<()> {
        let root = rustix::mount::open_tree(
            CWD,
            self.place,
            rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?;
        let attributes = MountAttributes {
            set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
            private: true,
            ..Default::default()
        };
        sys::set_mount_attributes(root, attributes)
    }
}

/// False where even root may not, as in some containers.
fn make_devices(dev: &Path) -> bool {
    DEVICES.into_iter().all(|(name, major, minor)| {
        let (path, device) = (dev.join(name), makedev(major, minor));
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, &path, FileType::CharacterDevice, mode, device).is_ok()
            && rustix::fs::chmod(&path, mode).is_ok()
            // A file system may hold devices that do not work as such.
            && fs::File::open(&path).is_ok()
    })
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn make_mount_point(like: &Path, at: &Path) -> io::Result<()> {
    if like.is_dir() {
        return fs::create_dir_all(at);
    }
    fs::create_dir_all(at.parent().unwrap_or(Path::new("/")))?;
    fs::File::create(at).map(drop)
}

fn is_configuration(name: &str) -> bool {
    CONFIGURATION.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == *pattern,
    })
}

/// Where something is mounted, in the order of the paths' lengths. The fifth field is a path, with
/// blanks and the like as octal numbers (proc_pid_mountinfo(5)).
fn mount_points() -> Vec<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let fields = table.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' '));
    let mut paths: Vec<_> =
        fields.filter_map(|mut fields| Some(PathBuf::from(unescaped(fields.nth(4)?)))).collect();
    paths.sort_by_key(|path| (path.as_os_str().len(), path.as_os_str().to_owned()));
    paths.dedup();
    paths
}

fn unescaped(text: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, others @ ..] = rest {
        let number = others.first_chunk::<3>().filter(|_| *first == b'\\');
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[3..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn paths_of_mounts_are_read_as_the_kernel_writes_them() {
        for (text, path) in [
            ("/usr/a\\040b", "/usr/a b"),
            ("/plain", "/plain"),
            ("/a\\134040", "/a\\040"),
            ("/odd\\", "/odd\\"),
            ("/odd\\9", "/odd\\9"),
        ] {
            assert_eq!(unescaped(text.as_bytes()).as_bytes(), path.as_bytes());
        }
    }
}
