//! A full disk costs lines, and nothing else.

use std::{fs, io::Write, path::Path, sync::Arc};

use catalog::SqliteCatalog;
use logs::{LogLimits, LogStore};
use model::LogEvent;
use protocol::{CallLog, LogStream};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::lab::{ALL, call, end, function, text};

/// A small disk of its own; unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// None, and a line that says so, without the right to mount.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let options = Some(c"size=1m,mode=700");
        match rustix::mount::mount("tmpfs", directory.path(), "tmpfs", flags, options) {
            Ok(()) => Some(Self(directory)),
            Err(error) => {
                println!("skipped: a small disk cannot be mounted here: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> std::path::PathBuf {
        self.path().join("filler")
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).expect("a file");
        for size in [65_536, 4096, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_costs_lines_until_there_is_room_again() {
    let Some(disk) = Disk::mount() else { return };
    let elsewhere = tempfile::tempdir().expect("a directory");
    let catalog = Arc::new(SqliteCatalog::open(elsewhere.path()).expect("a catalog"));
    let store = LogStore::open(disk.path(), LogLimits::default(), catalog).expect("a store");
    let log = store.function(&function("hello"));
    log.call(call(0)).end(end("/before"));
    store.flush().expect("written");

    disk.fill();
    // More than what is left in the file's last page.
    for number in 0..100 {
        log.call(call(number)).write(LogStream::Log, &"x".repeat(1000));
        store.flush().expect("no error for who logs");
    }
    store.function(&function("new")).call(call(0)).end(end("/"));
    store.flush().expect("no error for who logs");
    let left_out = store.left_out();
    assert!(left_out > 90, "{left_out}");

    fs::remove_file(disk.filler()).expect("removed");
    log.call(call(1)).end(end("/after"));
    let lines = store.read(&function("hello"), ALL).expect("read");
    assert_eq!(text(&lines[0]), "end: GET /before");
    let after = lines.iter().position(|line| text(line) == "end: GET /after").expect("written");
    let LogEvent::Note { text: note } = &lines[after + 1].event else {
        panic!("no note: {:?}", lines[after + 1])
    };
    let lost = left_out - 1; // one of them is the other function's
    assert!(note.starts_with(&format!("{lost} lines were left out")), "{note}");
    let whole = fs::read_to_string(disk.path().join("hello/00000001.ndjson")).expect("a file");
    assert_eq!(whole.lines().count(), lines.len(), "no half lines in between");
}
