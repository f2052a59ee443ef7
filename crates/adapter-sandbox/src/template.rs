//! The root file system that instances of one runtime share: the host's programs, read-only, with
//! the runtime's files, and nothing else of the host.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Component, Path, PathBuf},
};

use model::{LaunchSpec, Network, paths};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    fault::{Fault, Step},
    mounts::{DEVICE, READ_ONLY, bind},
    nameservers::Nameservers,
    sys::{self, MountAttributes},
};

/// Unused ones are forgotten beyond this; a host seldom has more runtimes.
const MOST: usize = 64;

const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

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

/// The templates in use, each mounted below one directory.
pub(crate) struct Templates {
    directory: PathBuf,
    nameservers: Nameservers,
    built: Vec<Template>,
    serial: u64,
}

struct Template {
    key: Key,
    path: PathBuf,
}

/// What makes two launches share a root. Directories are known by inode, too: one may be replaced
/// by another of the same name.
#[derive(PartialEq, Eq)]
pub(crate) struct Key {
    directories: Vec<(PathBuf, u64, u64)>,
    network: Network,
}

impl Templates {
    pub(crate) fn new(directory: PathBuf, nameservers: Nameservers) -> Self {
        Self { directory, nameservers, built: Vec::new(), serial: 0 }
    }

    /// The root for an instance, built if there is none yet.
    pub(crate) fn get(&mut self, spec: &LaunchSpec) -> Result<&Path, Fault> {
        let key = Key::of(spec)?;
        let template = match self.built.iter().position(|template| template.key == key) {
            Some(at) => self.built.remove(at),
            None => self.build(spec, key)?,
        };
        // The order is that of last use.
        self.built.push(template);
        if self.built.len() > MOST {
            self.built.remove(0).remove();
        }
        Ok(&self.built[self.built.len() - 1].path)
    }

    fn build(&mut self, spec: &LaunchSpec, key: Key) -> Result<Template, Fault> {
        self.serial += 1;
        let template = Template { key, path: self.directory.join(self.serial.to_string()) };
        let built = Builder { root: &template.path, nameservers: &self.nameservers }.build(spec);
        if let Err(fault) = built {
            template.remove();
            return Err(fault);
        }
        Ok(template)
    }
}

impl Drop for Templates {
    fn drop(&mut self) {
        self.built.drain(..).for_each(Template::remove);
    }
}

impl Template {
    /// Instances have copies of their own and do not notice.
    fn remove(self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.path);
    }
}

impl Key {
    pub(crate) fn of(spec: &LaunchSpec) -> Result<Self, Fault> {
        let identify = |path: &PathBuf| {
            let found = fs::metadata(path).step(format!("find {}", path.display()))?;
            Ok((path.clone(), found.dev(), found.ino()))
        };
        let directories = [&spec.server]
            .into_iter()
            .chain(&spec.programs)
            .map(identify)
            .collect::<Result<_, _>>()?;
        Ok(Self { directories, network: spec.network })
    }
}

struct Builder<'a> {
    root: &'a Path,
    nameservers: &'a Nameservers,
}

impl Builder<'_> {
    fn build(&self, spec: &LaunchSpec) -> Result<(), Fault> {
        fs::create_dir_all(self.root).step("make a directory for a root")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("hearth", self.root, "tmpfs", flags, c"mode=0755,size=4m").step("mount a root")?;
        self.system().step("show the host's programs")?;
        self.configuration(spec.network).step("write /etc")?;
        self.devices().step("show devices")?;
        for directory in ["proc", "tmp", "mnt/code", "run/hearth", "var", "dev/shm"] {
            fs::create_dir_all(self.root.join(directory)).step("make mount points")?;
        }
        symlink("/tmp", self.root.join("var/tmp")).step("make mount points")?;
        for directory in &spec.programs {
            self.programs(directory).step(format!("show {}", directory.display()))?;
        }
        bind(&spec.server, &self.inside(Path::new(paths::SERVER)), READ_ONLY)
            .step(format!("show {}", spec.server.display()))?;
        self.freeze().step("make a root read-only")
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// `/usr` is put together from its parts: the runtime's directory must be mounted in it, and
    /// the host may have no place for that.
    fn system(&self) -> io::Result<()> {
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            self.show_if_there(&Path::new("/").join(name))?;
        }
        self.show_children(Path::new("/usr"), "local")?;
        self.show_children(Path::new("/usr/local"), "server")
    }

    fn show_children(&self, directory: &Path, left_out: &str) -> io::Result<()> {
        fs::create_dir_all(self.inside(directory))?;
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

    fn show_if_there(&self, path: &Path) -> io::Result<()> {
        match self.show(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Every mount costs time at each launch, so links are made again and what is empty is not
    /// bound.
    fn show(&self, path: &Path) -> io::Result<()> {
        let found = fs::symlink_metadata(path)?;
        let inside = self.inside(path);
        if found.is_symlink() {
            fs::create_dir_all(inside.parent().unwrap_or(self.root))?;
            return symlink(fs::read_link(path)?, inside);
        }
        if found.is_dir() && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) {
            return fs::create_dir_all(inside);
        }
        bind(path, &inside, READ_ONLY)
    }

    fn programs(&self, directory: &Path) -> io::Result<()> {
        if directory.starts_with("/usr") {
            return Ok(());
        }
        if OWN.iter().any(|own| directory.starts_with(own)) {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        // A link on the way would lead out of the root.
        let mut way = self.root.to_path_buf();
        for part in directory.strip_prefix("/").unwrap_or(directory).components() {
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
        bind(directory, &way, READ_ONLY)
    }

    fn configuration(&self, network: Network) -> io::Result<()> {
        let etc = self.root.join("etc");
        fs::create_dir_all(&etc)?;
        for (name, text) in [
            ("passwd", PASSWD),
            ("group", GROUP),
            ("hosts", HOSTS),
            ("nsswitch.conf", NSSWITCH),
            ("hostname", "hearth\n"),
            ("resolv.conf", &self.nameservers.configuration(network)),
        ] {
            fs::write(etc.join(name), text)?;
        }
        for entry in fs::read_dir("/etc")? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(is_configuration) {
                self.show(&entry.path())?;
            }
        }
        Ok(())
    }

    fn devices(&self) -> io::Result<()> {
        let dev = self.root.join("dev");
        fs::create_dir_all(&dev)?;
        for name in DEVICES {
            bind(&Path::new("/dev").join(name), &dev.join(name), DEVICE)?;
        }
        for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            symlink(format!("/proc/self/fd{target}"), dev.join(name))?;
        }
        Ok(())
    }

    fn freeze(&self) -> io::Result<()> {
        let root = rustix::mount::open_tree(
            rustix::fs::CWD,
            self.root,
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

fn is_configuration(name: &str) -> bool {
    CONFIGURATION.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == *pattern,
    })
}
