//! Limits for all processes of an instance together, with whatever the machine has: cgroup v2,
//! v1, or some controllers on each.
//!
//! ```text
//! <where the controller is mounted>/hearth/<owner>/<instance>
//! ```

use std::{collections::BTreeSet, fs, io, os::fd::OwnedFd, path::PathBuf, time::Duration};

use model::Limits;
use rustix::fs::{Mode, OFlags, open};

mod files;
mod host;
mod limits;
mod place;

use files::{children, processes, read_number, remove, remove_soon};
use place::{Mounted, Place, Version};

/// The three that instances are limited by.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

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
        let found = Self::usable().into_iter().map(|(controller, place)| {
            let described = |Place { directory, version }| match version {
                Version::V1 => (1, directory),
                Version::V2 => (2, directory),
            };
            (controller, place.map(described))
        });
        found.collect()
    }

    /// Whether a launcher would find that the buffers of sockets count as memory.
    pub(crate) fn would_count_sockets() -> bool {
        let counts = |(_, place): &(_, Option<Place>)| {
            place.as_ref().is_some_and(limits::are_sockets_counted)
        };
        Self::usable().iter().find(|(controller, _)| *controller == "memory").is_some_and(counts)
    }

    fn usable() -> [(&'static str, Option<Place>); 3] {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts: Vec<Mounted> = mounts.lines().filter_map(Mounted::parse).collect();
        CONTROLLERS.map(|controller| {
            let mut candidates = mounts.iter().flat_map(|mount| mount.candidates(controller, &own));
            (controller, candidates.find(|place| place.is_usable(controller)))
        })
    }

    /// The controllers that are missing here.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        CONTROLLERS.into_iter().filter(|controller| self.place(controller).is_none()).collect()
    }

    /// Whether groups decide who has processor time.
    pub(crate) fn have_weight(&self) -> bool {
        self.place("cpu").is_some()
    }

    /// Whether the buffers of an instance's sockets count as its memory.
    pub(crate) fn are_sockets_counted(&self) -> bool {
        self.place("memory").is_some_and(limits::are_sockets_counted)
    }

    /// Keeps all instances together from taking the machine's memory and the daemon's processor
    /// time. Returns how much memory they may use; none if nothing limits them together.
    pub(crate) fn confine(&self, machine: u64, reserve: Option<u64>) -> io::Result<Option<u64>> {
        let limit = |place: &Place| {
            let bytes = host::share(host::memory(place, machine), reserve);
            limits::limit_memory(&place.directory, place.version, bytes).map(|()| bytes)
        };
        let limited = self.place("memory").map(limit).transpose()?;
        self.place("cpu").map(host::weigh).transpose()?;
        Ok(limited)
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
            limits::apply(controller, (&self.directory(place), place.version), old, new)?;
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
        let directory = self.directory(place);
        match place.version {
            Version::V1 => {
                let rest = read_number(&directory, "memory.usage_in_bytes")?;
                let sockets = read_number(&directory, "memory.kmem.tcp.usage_in_bytes");
                Some(rest + sockets.unwrap_or(0))
            }
            Version::V2 => read_number(&directory, "memory.current"),
        }
    }

    /// The time they have had. Unknown where v1 counts it in another hierarchy than it limits it.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let place = self.groups.place("cpu")?;
        let directory = self.directory(place);
        match place.version {
            Version::V1 => read_number(&directory, "cpuacct.usage").map(Duration::from_nanos),
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

    /// Whether the kernel killed one of its processes for want of memory: its own, or that of all
    /// instances together or of the host. Each kill is counted where the killed process was.
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

#[cfg(test)]
mod tests;
