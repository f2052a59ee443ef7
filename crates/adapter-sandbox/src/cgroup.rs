//! Limits for all processes of an instance together, with whatever the machine has: cgroup v2,
//! v1, or some controllers on each.
//!
//! ```text
//! <where the controller is mounted>/hearth/<owner>/<instance>
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use model::Limits;
use rustix::fs::{Access, Mode, OFlags, open};

/// The three that instances are limited by.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The usual length of the time slices in which processor time is given out.
const PERIOD_MICROS: u64 = 100_000;

/// An init is one more process than the function was promised.
const INIT: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V1,
    V2,
}

/// A directory below which one owner's groups are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    directory: PathBuf,
    version: Version,
}

/// Where each controller is, of those that can be used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    controllers: Vec<(&'static str, Place)>,
}

/// The groups of one instance.
#[derive(Debug)]
pub(crate) struct Group {
    name: String,
    groups: Groups,
}

/// How a new process gets into its groups.
#[derive(Default)]
pub(crate) struct Entrance {
    /// Born there.
    pub(crate) v2: Option<OwnedFd>,
    /// By writing `0`. One thread that moves itself spares the kernel a pause of all processors
    /// that moving a whole process would cost.
    pub(crate) v1: Vec<OwnedFd>,
}

impl Groups {
    /// Finds what is usable, and makes the owner's directories.
    pub(crate) fn find(owner: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::among(&mounts, &own, owner)
    }

    fn among(mounts: &str, own: &str, owner: &str) -> Self {
        let mounts: Vec<Mounted> = mounts.lines().filter_map(Mounted::parse).collect();
        let mut groups = Self::default();
        for controller in CONTROLLERS {
            let place = mounts
                .iter()
                .flat_map(|mount| mount.candidates(controller, own))
                .find_map(|top| top.prepare(controller, owner).ok());
            groups.controllers.extend(place.map(|place| (controller, place)));
        }
        groups
    }

    /// What a launcher would find, without making anything: each controller with its version and
    /// the directory below which its groups would be.
    pub(crate) fn survey() -> Vec<(&'static str, Option<(u8, PathBuf)>)> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts: Vec<Mounted> = mounts.lines().filter_map(Mounted::parse).collect();
        let find = |controller| {
            let mut candidates = mounts.iter().flat_map(|mount| mount.candidates(controller, &own));
            let place = candidates.find(|place| place.is_usable(controller))?;
            let version = if place.version == Version::V2 { 2 } else { 1 };
            Some((version, place.directory))
        };
        CONTROLLERS.map(|controller| (controller, find(controller))).to_vec()
    }

    /// The controllers that are missing here.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        CONTROLLERS.into_iter().filter(|controller| self.place(controller).is_none()).collect()
    }

    fn place(&self, controller: &str) -> Option<&Place> {
        self.controllers.iter().find(|(name, _)| *name == controller).map(|(_, place)| place)
    }

    fn places(&self) -> BTreeSet<&Place> {
        self.controllers.iter().map(|(_, place)| place).collect()
    }

    /// Makes an instance's groups with their limits, and opens them.
    pub(crate) fn create(&self, name: &str, limits: &Limits) -> io::Result<(Group, Entrance)> {
        let group = Group { name: name.into(), groups: self.clone() };
        match group.fill(limits) {
            Ok(entrance) => Ok((group, entrance)),
            Err(error) => {
                let _ = group.remove();
                Err(error)
            }
        }
    }

    /// Kills and removes every group of this owner, which nobody else uses any more.
    pub(crate) fn clear(&self) {
        for place in self.places() {
            for child in children(&place.directory) {
                for process in processes(&child) {
                    let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
                }
                remove_soon(&child);
            }
        }
    }

    /// Removes the owner's own directories. Those of others keep the common one alive.
    pub(crate) fn remove(&self) {
        for place in self.places() {
            remove_soon(&place.directory);
            if let Some(common) = place.directory.parent() {
                let _ = fs::remove_dir(common);
            }
        }
    }
}

impl Group {
    fn directory(&self, place: &Place) -> PathBuf {
        place.directory.join(&self.name)
    }

    fn fill(&self, limits: &Limits) -> io::Result<Entrance> {
        for place in self.groups.places() {
            match fs::create_dir(self.directory(place)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        self.apply(None, limits)?;
        self.open()
    }

    /// Gives its processes other limits. Writes only what differs.
    pub(crate) fn change(&self, old: &Limits, new: &Limits) -> io::Result<()> {
        self.apply(Some(old), new)
    }

    fn apply(&self, old: Option<&Limits>, new: &Limits) -> io::Result<()> {
        for (controller, place) in &self.groups.controllers {
            let directory = self.directory(place);
            let differs = |value: fn(&Limits) -> u64| old.map(value) != Some(value(new));
            match *controller {
                "memory" if differs(|limits| limits.memory_bytes) => {
                    let bytes = new.memory_bytes;
                    match place.version {
                        Version::V2 => limit_memory_v2(&directory, bytes)?,
                        Version::V1 => {
                            let is_rise = old.is_some_and(|old| old.memory_bytes < bytes);
                            limit_memory_v1(&directory, is_rise, bytes)?;
                        }
                    }
                }
                "cpu" if differs(|limits| limits.cpus_milli.into()) => {
                    limit_cpu(&directory, place.version, new)?;
                }
                "pids" if differs(|limits| limits.pids.into()) => {
                    write(&directory, "pids.max", new.pids.saturating_add(INIT))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&self) -> io::Result<Entrance> {
        let mut entrance = Entrance::default();
        for place in self.groups.places() {
            let directory = self.directory(place);
            match place.version {
                Version::V2 => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    entrance.v2 = Some(open(&directory, flags, Mode::empty())?);
                }
                Version::V1 => entrance.v1.push(open(
                    directory.join("tasks"),
                    OFlags::WRONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?),
            }
        }
        Ok(entrance)
    }

    /// What its processes use at this moment, as the limit counts it.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        let place = self.groups.place("memory")?;
        let file = match place.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        };
        fs::read_to_string(self.directory(place).join(file)).ok()?.trim().parse().ok()
    }

    /// The time they have had. Unknown where v1 counts it in another hierarchy than it limits it.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let place = self.groups.place("cpu")?;
        let directory = self.directory(place);
        match place.version {
            Version::V1 => {
                let text = fs::read_to_string(directory.join("cpuacct.usage")).ok()?;
                text.trim().parse().ok().map(Duration::from_nanos)
            }
            Version::V2 => {
                let text = fs::read_to_string(directory.join("cpu.stat")).ok()?;
                let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
                line?.trim().parse().ok().map(Duration::from_micros)
            }
        }
    }

    /// Its processes, if there is any group to list them.
    pub(crate) fn processes(&self) -> Option<Vec<rustix::process::Pid>> {
        let place = self.groups.places().into_iter().next()?;
        Some(processes(&self.directory(place)))
    }

    /// Whether the kernel killed one of its processes for want of memory.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        let Some(place) = self.groups.place("memory") else { return false };
        let file = match place.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.directory(place).join(file)).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.strip_prefix("oom_kill "))
            .any(|count| count.trim() != "0")
    }

    /// Removes the groups. Fails while a process is still on its way out of them.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.groups.places().into_iter().try_for_each(|place| remove(&self.directory(place)))
    }
}

fn quota_micros(limits: &Limits) -> u64 {
    u64::from(limits.cpus_milli) * PERIOD_MICROS / 1000
}

fn limit_cpu(directory: &Path, version: Version, limits: &Limits) -> io::Result<()> {
    let quota = quota_micros(limits);
    match version {
        Version::V2 => write(directory, "cpu.max", format!("{quota} {PERIOD_MICROS}")),
        Version::V1 => {
            write(directory, "cpu.cfs_period_us", PERIOD_MICROS)?;
            write(directory, "cpu.cfs_quota_us", quota)
        }
    }
}

fn limit_memory_v2(directory: &Path, bytes: u64) -> io::Result<()> {
    write(directory, "memory.max", bytes)?;
    // Half a runtime is of no use: all or none of its processes die.
    write(directory, "memory.oom.group", 1)?;
    if_there(write(directory, "memory.swap.max", 0))
}

fn limit_memory_v1(directory: &Path, is_rise: bool, bytes: u64) -> io::Result<()> {
    let memory = || write(directory, "memory.limit_in_bytes", bytes);
    // Memory and swap together: no swap. The file is missing where swap is not accounted.
    let both = || if_there(write(directory, "memory.memsw.limit_in_bytes", bytes));
    // Both together must never be less than memory alone.
    if is_rise { both().and_then(|()| memory()) } else { memory().and_then(|()| both()) }
}

fn write(directory: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    // Not `fs::write`, which would make the file where the controller is missing.
    let file = fs::OpenOptions::new().write(true).open(directory.join(file))?;
    io::Write::write_all(&mut &file, value.to_string().as_bytes())
}

fn if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    if_there(fs::remove_dir(directory))
}

/// At the start and at the end there is time to wait for what was killed.
fn remove_soon(directory: &Path) {
    for _ in 0..100 {
        match remove(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

fn processes(directory: &Path) -> Vec<rustix::process::Pid> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?)).collect()
}

/// A mounted hierarchy.
struct Mounted<'a> {
    version: Version,
    at: PathBuf,
    /// Which part of the hierarchy is mounted there.
    root: &'a str,
    /// The controllers of a v1 hierarchy.
    options: &'a str,
}

impl<'a> Mounted<'a> {
    /// Reads a line of `mountinfo`: `id parent device root at options … - type source options`.
    fn parse(line: &'a str) -> Option<Self> {
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
    fn candidates(&self, controller: &str, own: &str) -> Vec<Place> {
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
    fn is_usable(&self, controller: &str) -> bool {
        let is_writable = rustix::fs::access(&self.directory, Access::WRITE_OK).is_ok();
        is_writable && (self.version == Version::V1 || has_controller(&self.directory, controller))
    }

    /// Makes the owner's directory below this one, with the controller ready for its children.
    fn prepare(&self, controller: &str, owner: &str) -> io::Result<Self> {
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

#[cfg(test)]
mod tests;
