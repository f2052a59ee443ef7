//! Where on this machine groups can be made.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::Access;

use super::files::{processes, write};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V1,
    V2,
}

/// A directory below which one owner's groups are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) version: Version,
}

/// A mounted hierarchy.
pub(super) struct Mounted<'a> {
    pub(super) version: Version,
    at: PathBuf,
    /// Which part of the hierarchy is mounted there.
    pub(super) root: &'a str,
    /// The controllers of a v1 hierarchy.
    options: &'a str,
}

impl<'a> Mounted<'a> {
    /// Reads a line of `mountinfo`: `id parent device root at options … - type source options`.
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, at) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let version = match right.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let options = right.nth(1)?;
        Some(Self { version, at: PathBuf::from(at), root, options })
    }

    /// Directories below which our groups may be made, the better first.
    pub(super) fn candidates(&self, controller: &str, own: &str) -> Vec<Place> {
        let place = |directory| Place { directory, version: self.version };
        match self.version {
            Version::V1 if !self.options.split(',').any(|option| option == controller) => vec![],
            Version::V1 => vec![place(self.at.clone())],
            Version::V2 => {
                let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
                let below = own.strip_prefix(self.root).unwrap_or(own).trim_start_matches('/');
                // The whole of what is mounted, on a host or in a container; without root, only
                // the part that was delegated to us is writable.
                vec![place(self.at.clone()), place(self.at.join(below))]
            }
        }
    }
}

impl Place {
    pub(super) fn is_usable(&self, controller: &str) -> bool {
        let is_writable = rustix::fs::access(&self.directory, Access::WRITE_OK).is_ok();
        is_writable && (self.version == Version::V1 || has_controller(&self.directory, controller))
    }

    /// Makes the owner's directory below this one, with the controller ready for its children.
    pub(super) fn prepare(&self, controller: &str, owner: &str) -> io::Result<Self> {
        let common = self.directory.join("hearth");
        let directory = common.join(owner);
        if self.version == Version::V2 {
            self.delegate(controller)?;
        }
        fs::create_dir_all(&directory)?;
        // It may be there because another user has the same number.
        rustix::fs::access(&directory, Access::WRITE_OK)?;
        if self.version == Version::V2 {
            enable(&common, controller)?;
            enable(&directory, controller)?;
        }
        Ok(Self { directory, version: self.version })
    }

    /// Gives the controller to the children. A group below the top of the host must have no
    /// processes of its own for that, so those that are there move into a child: daemon and
    /// launcher, or with root all of a container.
    fn delegate(&self, controller: &str) -> io::Result<()> {
        match enable(&self.directory, controller) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let all = processes(&self.directory);
                if !rustix::process::getuid().is_root() && !all.iter().all(is_ours) {
                    return Err(error);
                }
                let daemon = self.directory.join("hearth-daemon");
                fs::create_dir_all(&daemon)?;
                for process in all {
                    write(&daemon, "cgroup.procs", process.as_raw_nonzero())?;
                }
                enable(&self.directory, controller)
            }
            result => result,
        }
    }
}

/// Whether a process is this launcher or its daemon.
fn is_ours(process: &rustix::process::Pid) -> bool {
    *process == rustix::process::getpid() || Some(*process) == rustix::process::getppid()
}

fn has_controller(directory: &Path, controller: &str) -> bool {
    let available = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    available.split_whitespace().any(|name| name == controller)
}

fn enable(directory: &Path, controller: &str) -> io::Result<()> {
    if !has_controller(directory, controller) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    write(directory, "cgroup.subtree_control", format!("+{controller}"))
}
