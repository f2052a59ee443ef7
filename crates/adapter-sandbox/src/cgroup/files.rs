//! The files of groups.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub(super) fn write(directory: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    // Not `fs::write`, which would make the file where the controller is missing.
    let file = fs::OpenOptions::new().write(true).open(directory.join(file))?;
    io::Write::write_all(&mut &file, value.to_string().as_bytes())
}

pub(super) fn if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

pub(super) fn remove(directory: &Path) -> io::Result<()> {
    if_there(fs::remove_dir(directory))
}

/// A number in a file of its own.
pub(super) fn read_number(directory: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
}

/// At the start and at the end there is time to wait for what was killed.
pub(super) fn remove_soon(directory: &Path) {
    for _ in 0..100 {
        match remove(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

pub(super) fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

pub(super) fn processes(directory: &Path) -> Vec<rustix::process::Pid> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?)).collect()
}
