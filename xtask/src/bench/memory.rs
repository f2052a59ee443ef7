//! How much memory `hearth serve` and everything it started take, by process.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail, ensure};

use super::{
    Effort,
    language::Language,
    report::{Column, Question, Row, State},
    servers::{Endpoint, HearthOptions, LogPlace, Site},
};
use crate::{
    load::{self, Plan},
    schedule::Pace,
};

/// How many calls there are between the two measurements, at least.
const CALLS: u64 = 10_000;
/// The load comes in pieces, since a run's length is a time.
const PIECE: Duration = Duration::from_millis(500);
/// A server that needs more pieces than this is broken.
const MAX_PIECES: usize = 100;

const COLUMNS: &[Column] = &[
    Column { key: "processes", heading: "processes", decimals: 0 },
    Column { key: "rss_kib", heading: "RSS KiB", decimals: 0 },
    Column { key: "pss_kib", heading: "PSS KiB", decimals: 0 },
];

/// Answers the question about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    _effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let options = HearthOptions { logs: Some(LogPlace::Memory), ..HearthOptions::default() };
    let name = format!("memory-{}", language.name);
    let rows = match site.hearth(language, &name, options) {
        Ok(endpoint) => before_and_after(&endpoint)
            .unwrap_or_else(|error| vec![missing(State::Failed(format!("{error:#}")))]),
        Err(reason) => vec![missing(State::Skipped(format!("{reason:#}")))],
    };
    answer(Question {
        name,
        title: format!("Memory of `hearth serve` and what it started, {}", language.title),
        columns: COLUMNS,
        comparisons: Vec::new(),
        rows,
    });
    Ok(())
}

fn missing(state: State) -> Row {
    Row { label: "hearth".to_owned(), state }
}

fn before_and_after(endpoint: &Endpoint) -> anyhow::Result<Vec<Row>> {
    let mut rows = rows("idle", &usage(endpoint.server.id())?);
    put_load(endpoint)?;
    let after = format!("after {CALLS} calls");
    rows.extend(self::rows(&after, &usage(endpoint.server.id())?));
    Ok(rows)
}

fn put_load(endpoint: &Endpoint) -> anyhow::Result<()> {
    let (target, request) = endpoint.request("/", &[])?;
    let plan = Plan {
        address: target.address,
        requests: vec![request],
        connections: 16,
        duration: PIECE,
        pace: Pace::Closed,
        core: None,
    };
    let mut calls = 0;
    for _ in 0..MAX_PIECES {
        let outcome = load::run(&plan)?;
        ensure!(outcome.failures.total() == 0, "calls failed: {:?}", outcome.failures);
        calls += outcome.latencies.count();
        if calls >= CALLS {
            return Ok(());
        }
    }
    bail!("only {calls} calls were answered")
}

/// What some processes take together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    processes: u32,
    rss_kib: u32,
    pss_kib: u32,
}

impl Usage {
    fn plus(self, other: Self) -> Self {
        Self {
            processes: self.processes + other.processes,
            rss_kib: self.rss_kib + other.rss_kib,
            pss_kib: self.pss_kib + other.pss_kib,
        }
    }
}

/// A process and all that descend from it, by name. Those that end meanwhile do not count.
fn usage(leader: u32) -> anyhow::Result<BTreeMap<String, Usage>> {
    let mut all = BTreeMap::new();
    for id in descendants(leader, &parents()?) {
        let directory = Path::new("/proc").join(id.to_string());
        let Ok(rollup) = fs::read_to_string(directory.join("smaps_rollup")) else { continue };
        let arguments = fs::read(directory.join("cmdline")).unwrap_or_default();
        let own = Usage {
            processes: 1,
            rss_kib: kib(&rollup, "Rss:").context("a process without a resident size")?,
            pss_kib: kib(&rollup, "Pss:").context("a process without a proportional size")?,
        };
        let entry: &mut Usage = all.entry(name(&arguments)).or_default();
        *entry = entry.plus(own);
    }
    Ok(all)
}

/// The resident size of one process.
pub(super) fn resident_kib(process: u32) -> anyhow::Result<u32> {
    let file = format!("/proc/{process}/smaps_rollup");
    let rollup = fs::read_to_string(&file).with_context(|| format!("read `{file}`"))?;
    kib(&rollup, "Rss:").context("a process without a resident size")
}

fn rows(when: &str, usage: &BTreeMap<String, Usage>) -> Vec<Row> {
    let total = usage.values().fold(Usage::default(), |sum, one| sum.plus(*one));
    let named = usage.iter().map(|(name, usage)| (name.as_str(), *usage));
    named
        .chain([("total", total)])
        .map(|(name, usage)| Row {
            label: format!("{when}: {name}"),
            state: State::Measured(vec![vec![
                usage.processes.into(),
                usage.rss_kib.into(),
                usage.pss_kib.into(),
            ]]),
        })
        .collect()
}

/// Every process with its parent.
fn parents() -> anyhow::Result<Vec<(u32, u32)>> {
    let entries = fs::read_dir("/proc").context("list processes")?;
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(ids
        .filter_map(|id: u32| {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            Some((id, parent(&stat)?))
        })
        .collect())
}

/// The parent in a line of `/proc/PID/stat`; the name before it may contain anything.
fn parent(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(1)?.parse().ok()
}

fn descendants(leader: u32, parents: &[(u32, u32)]) -> HashSet<u32> {
    let mut found = HashSet::from([leader]);
    loop {
        let before = found.len();
        let children = parents.iter().filter(|(_, parent)| found.contains(parent));
        let children: Vec<_> = children.map(|(id, _)| *id).collect();
        found.extend(children);
        if found.len() == before {
            return found;
        }
    }
}

/// A field of `smaps_rollup`, in KiB.
fn kib(rollup: &str, field: &str) -> Option<u32> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The program and its command or, behind any options, the file it runs; without their folders.
fn name(arguments: &[u8]) -> String {
    let text = String::from_utf8_lossy(arguments);
    let mut words = text.split('\0').filter(|word| !word.is_empty());
    let base = |word: &str| word.rsplit('/').next().unwrap_or_default().to_owned();
    let Some(program) = words.next() else { return "kernel thread or zombie".to_owned() };
    let subject = words.enumerate().find(|(at, word)| {
        // The value of an interpreter's option is neither.
        !word.starts_with('-') && (*at == 0 || word.contains('/'))
    });
    match subject {
        Some((_, subject)) => format!("{} {}", base(program), base(subject)),
        None => base(program),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_through_all_generations() {
        let parents = [(5, 4), (2, 1), (3, 2), (4, 3), (9, 1), (1, 0)];
        assert_eq!(descendants(2, &parents), HashSet::from([2, 3, 4, 5]));
    }

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent("garbage"), None);
    }

    #[test]
    fn processes_are_named_after_what_they_run() {
        for (arguments, expected) in [
            (&b"/usr/bin/python3\0-I\0-X\0utf8\0/srv/worker.py\0"[..], "python3 worker.py"),
            (b"/x/hearth\0serve\0/srv/function\0", "hearth serve"),
            (b"init\0", "init"),
            (b"", "kernel thread or zombie"),
        ] {
            assert_eq!(name(arguments), expected);
        }
    }

    #[test]
    fn sizes_are_read_and_summed() {
        let rollup = "00400000-7ffd [rollup]\nRss:    1234 kB\nPss:     567 kB\nPss_Dirty: 1 kB\n";
        assert_eq!((kib(rollup, "Rss:"), kib(rollup, "Pss:")), (Some(1234), Some(567)));
        let own = usage(std::process::id()).expect("this process");
        let total = own.values().fold(Usage::default(), |sum, one| sum.plus(*one));
        assert!(total.processes >= 1 && total.rss_kib >= total.pss_kib, "{own:?}");
    }
}
