//! What the figures were measured on.

use std::{fs, path::Path, process::Command, thread};

use serde_json::{Map, Value, json};

use super::stage::isolated;

/// Programs whose version belongs beside the figures.
const PROGRAMS: [(&str, &str); 5] = [
    ("node", "--version"),
    ("python3", "--version"),
    ("runc", "--version"),
    ("bwrap", "--version"),
    ("git", "--version"),
];

/// Describes this machine and the programs on it, `null` for what it does not say.
pub(crate) fn describe(root: &Path, hearth: &Path) -> Value {
    let mut versions: Map<String, Value> = PROGRAMS
        .iter()
        .map(|(program, argument)| ((*program).to_owned(), json!(first_line(program, &[argument]))))
        .collect();
    versions.insert("hearth".to_owned(), json!(first_line(hearth, &["--version"])));
    let root = root.to_string_lossy();
    json!({
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "processor": processor(),
        "processors": thread::available_parallelism().ok().map(usize::from),
        "memory": line_with("/proc/meminfo", "MemTotal:"),
        "load_before": fs::read_to_string("/proc/loadavg").ok().map(|text| text.trim().to_owned()),
        "commit": first_line("git", &["-C", &root, "rev-parse", "HEAD"]),
        "versions": versions,
    })
}

fn processor() -> Option<String> {
    line_with("/proc/cpuinfo", "model name")
        .map(|name| name.trim_start_matches([':', ' ']).to_owned())
}

fn line_with(file: &str, prefix: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(prefix)).map(|rest| rest.trim().to_owned())
}

fn first_line(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = isolated(command).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}
