//! Room on the disk that is kept for making room.
//!
//! The catalog needs a few pages to say that a function is gone, before anything of the function is
//! removed. On a full disk these are in a file without content, which is emptied first and filled
//! again when there is room.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// The file's size: many times what a removal writes, and what the daemon's start writes.
const BYTES: u64 = 8 << 20;
/// The first time, the file is made if there is so much more room than it takes, so that it is not
/// what fills a small disk.
const ROOM: u64 = 4;
/// Less than this is not worth a file.
const LEAST: u64 = 256 << 10;

pub(crate) struct Reserve {
    path: PathBuf,
    /// Whether there was one. Then it is made again as large as it can be, so that the next one who
    /// makes room can, too.
    is_known: AtomicBool,
}

impl Reserve {
    /// The reserve of a data directory.
    pub(crate) fn of(data: &Path) -> Self {
        let path = data.join("reserve");
        let is_known = AtomicBool::new(path.exists());
        Self { path, is_known }
    }

    /// Makes the reserve as large as it should be and can be.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let has = fs::metadata(&self.path).map_or(0, |found| found.len());
        if has >= BYTES {
            return Ok(());
        }
        let room = self.room() + has;
        let wanted = match room {
            ample if ample >= ROOM * BYTES => BYTES,
            // A quarter is for those who write at the same time.
            room if self.is_known.load(Ordering::Relaxed) => BYTES.min(room / 4 * 3),
            _ => return Ok(()),
        };
        if wanted < LEAST.max(has) {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let made = options.open(&self.path).and_then(|file| allocate(&file, wanted));
        if made.is_err() {
            self.give_up();
        }
        self.is_known.store(true, Ordering::Relaxed);
        made
    }

    /// Whether there is less room on the disk than is comfortable.
    pub(crate) fn is_tight(&self) -> bool {
        self.room() < ROOM * BYTES
    }

    /// Whether there is next to nothing: not even a daemon starts.
    pub(crate) fn is_out(&self) -> bool {
        self.room() < LEAST * 4
    }

    fn room(&self) -> u64 {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        statvfs(directory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Gives the room away. Whether there was any.
    ///
    /// The file stays, empty: a daemon that starts on the full disk then knows that there is to be a
    /// reserve, and makes it again from the first room there is.
    pub(crate) fn give_up(&self) -> bool {
        let had_room = fs::metadata(&self.path).is_ok_and(|found| found.len() > 0);
        let emptied = OpenOptions::new().write(true).truncate(true).open(&self.path);
        had_room && emptied.is_ok()
    }
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    if fallocate(file, FallocateFlags::empty(), 0, bytes).is_ok() {
        return Ok(());
    }
    // A file system that cannot; one that compresses must find nothing to compress.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut writer = io::BufWriter::new(file);
    (0..bytes / 8).try_for_each(|_| writer.write_all(&noise()))?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_and_given_up() {
        let data = std::env::temp_dir().join(format!("hearth-reserve-{}", std::process::id()));
        fs::create_dir_all(&data).expect("made");
        let reserve = Reserve::of(&data);
        reserve.fill().expect("filled");
        let file = File::open(data.join("reserve")).expect("there is room on a test's disk");
        assert_eq!(file.metadata().expect("there").len(), BYTES);
        assert!(reserve.give_up() && !reserve.give_up());
        let later = Reserve::of(&data);
        assert!(later.is_known.load(Ordering::Relaxed), "whoever starts next makes it again");
        allocate(&File::create(data.join("other")).expect("made"), LEAST).expect("in either way");
        fs::remove_dir_all(&data).expect("removed");
    }
}
