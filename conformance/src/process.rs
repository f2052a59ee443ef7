//! Processes, as `/proc` shows them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A process and when it began, since numbers are used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    started: String,
}

impl Process {
    /// The process with this number, if there is one that is more than a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may contain anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let (state, started) = (fields.first()?, fields.get(19)?);
        let is_alive = !matches!(*state, "Z" | "X");
        is_alive.then(|| Self { pid, started: (*started).to_owned() })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Whether nothing at all is left of it; its sockets are closed then.
    pub fn is_gone(&self) -> bool {
        !self.is_alive() && !Path::new("/proc").join(self.pid.to_string()).exists()
    }

    /// Whether it has another number in a PID namespace of its own (proc_pid_status(5)).
    pub fn has_own_pids(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1)
    }

    /// What it was started with.
    pub fn command_line(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }

    /// Directories of its control groups.
    pub fn groups(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        // hierarchy:controllers:path; there are no controllers for version 2.
        let groups = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let mounted = Path::new("/sys/fs/cgroup");
            let path = path.trim_start_matches('/');
            let places = [mounted.join(controllers).join(path), mounted.join(path)];
            places.into_iter().find(|place| !path.is_empty() && place.is_dir())
        });
        groups.collect()
    }

    /// Sends it a signal, such as `KILL`.
    ///
    /// # Panics
    ///
    /// If there is no `kill` program.
    pub fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        kill.args([format!("-{name}"), self.pid.to_string()]);
        let status = kill.status().expect("`kill` is on every system");
        assert!(status.success() || !self.is_alive(), "no {name} for {}", self.pid);
    }

    /// Its memory in use, in bytes.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// All processes that it, or one of those, started.
    pub fn descendants(&self) -> Vec<Self> {
        let all: Vec<(u32, u32)> = pids().filter_map(|pid| Some((pid, parent(pid)?))).collect();
        let mut family = vec![self.pid];
        let mut next = 0;
        while let Some(&ancestor) = family.get(next) {
            family.extend(all.iter().filter(|(_, parent)| *parent == ancestor).map(|(pid, _)| pid));
            next += 1;
        }
        family[1..].iter().filter_map(|pid| Self::of(*pid)).collect()
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Directories of a running Hearth, which carry its process's number.
pub fn directories_of(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("{pid}-");
    let parents = [Path::new("/run/hearth"), Path::new("/var/lib/hearth")];
    let entries = parents.into_iter().filter_map(|parent| fs::read_dir(parent).ok()).flatten();
    let names = entries.flatten().map(|entry| entry.path());
    names
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .collect()
}
