//! What an instance uses: as its groups count it, or where they do not, as the sum of its processes.

use std::{fs, time::Duration};

use model::Usage;
use rustix::process::Pid;

use crate::cgroup::Group;

/// Nothing asks the kernel for more of an instance's processes than this.
const MOST: usize = 4096;

pub(crate) fn measure(group: &Group, roots: &[Pid]) -> Usage {
    let (memory, time) = (group.memory_bytes(), group.cpu_time());
    if let (Some(memory_bytes), Some(cpu_time)) = (memory, time) {
        return Usage { memory_bytes, cpu_time };
    }
    let processes = group.processes().unwrap_or_else(|| families(roots));
    let sum = processes
        .into_iter()
        .filter_map(Process::of)
        .fold((0, 0), |(pages, ticks), one| (pages + one.resident_pages, ticks + one.ticks));
    Usage {
        memory_bytes: memory.unwrap_or(sum.0 * rustix::param::page_size() as u64),
        cpu_time: time.unwrap_or_else(|| {
            Duration::from_millis(sum.1 * 1000 / rustix::param::clock_ticks_per_second().max(1))
        }),
    }
}

/// A line of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    resident_pages: u64,
    /// Its own and those of children that it has collected.
    ticks: u64,
}

impl Process {
    fn of(pid: Pid) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        // Its name may hold anything, parentheses too. The field behind it is the third.
        let (_, fields) = line.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = [14, 15, 16, 17].into_iter().map(number).sum::<Option<u64>>()?;
        Some(Self { resident_pages: number(24)?, ticks })
    }
}

/// These processes and all that descend from them.
fn families(roots: &[Pid]) -> Vec<Pid> {
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(pid) = found.get(next).copied().filter(|_| found.len() < MOST) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

fn children(pid: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let lists = threads.into_iter().flatten().flatten();
    let lists = lists.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(parse).collect::<Vec<_>>()).collect()
}

fn parse(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let line =
            "7 (a) R 1 (b) S 1 7 7 0 -1 4194560 1 2 3 4 10 20 300 4000 20 0 1 0 99 8192 55 1";
        assert_eq!(Process::parse(line), Some(Process { resident_pages: 55, ticks: 4330 }));
        assert_eq!(Process::parse("7 (cut off) S 1 7"), None);
    }

    #[test]
    fn a_family_has_grandchildren() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let said = &mut [0];
        std::io::Read::read_exact(&mut child.stdout.take().expect("piped"), said).expect("a line");
        let us = rustix::process::getpid();
        let shell = Pid::from_child(&child);
        let family = families(&[us]);
        assert!(family.contains(&shell));
        let sleep = children(shell);
        assert!(sleep.len() == 1 && family.contains(&sleep[0]), "{family:?}");
        rustix::process::kill_process(sleep[0], rustix::process::Signal::KILL).expect("kill");
        child.wait().expect("wait");
    }
}
