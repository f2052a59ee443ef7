//! What is not deleted at once, because deleting it may be a mistake.
//!
//! ```text
//! trash/2026-11-27/blobs/abcd…      what the catalog did not know when the daemon started
//! trash/2026-11-27/replaced/…       what a restored backup took the place of
//! ```
//!
//! It stays for seven days, unless the disk is full before.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

/// How long things stay in the trash, at least.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Trash(PathBuf);

impl Trash {
    /// The trash of a data directory.
    pub(crate) fn of(data: &Path) -> Self {
        Self(data.join("trash"))
    }

    /// Moves a file or directory of the same data directory here, and returns where it is now.
    pub(crate) fn put(&self, path: &Path, kind: &str) -> io::Result<PathBuf> {
        let place = self.place(kind)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let free = (0_u32..)
            .map(|attempt| match attempt {
                0 => place.join(&name),
                _ => place.join(format!("{name}.{attempt}")),
            })
            .find(|path| path.symlink_metadata().is_err())
            .expect("one of four billion names is free");
        fs::rename(path, &free)?;
        Ok(free)
    }

    /// The directory of today for one kind of things.
    pub(crate) fn place(&self, kind: &str) -> io::Result<PathBuf> {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let (day, _) = now.split_once('T').unwrap_or((&now, ""));
        let place = self.0.join(day).join(kind);
        DirBuilder::new().recursive(true).mode(0o700).create(&place)?;
        Ok(place)
    }

    /// Removes what has been here for more than seven days.
    pub(crate) fn expire(&self, now: SystemTime) {
        for (day, path) in self.days() {
            // A day is over when the next one begins.
            if now.duration_since(day + DAY).is_ok_and(|age| age >= KEPT_FOR) {
                remove(&path);
            }
        }
    }

    /// Removes everything. Whether there was anything.
    pub(crate) fn empty(&self) -> bool {
        let days = self.days();
        for (_, path) in &days {
            warn!(path = %path.display(), "the disk is full: emptying the trash before its time");
            remove(path);
        }
        !days.is_empty()
    }

    /// What else somebody keeps here is not ours to remove.
    fn days(&self) -> Vec<(SystemTime, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let day = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let midnight = format!("{}T00:00:00Z", name.to_str()?);
            Some((humantime::parse_rfc3339(&midnight).ok()?, entry.path()))
        };
        entries.flatten().filter_map(day).collect()
    }
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Ok(()) => info!(path = %path.display(), "removed from the trash"),
        Err(error) => warn!(path = %path.display(), %error, "could not remove from the trash"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_stay_for_seven_days_and_strangers_for_ever() {
        let data = std::env::temp_dir().join(format!("hearth-trash-{}", std::process::id()));
        let _ = fs::remove_dir_all(&data);
        fs::create_dir_all(data.join("trash/not-a-day")).expect("made");
        let trash = Trash::of(&data);
        let mut places = Vec::new();
        for _ in 0..2 {
            fs::write(data.join("thing"), "x").expect("written");
            places.push(trash.put(&data.join("thing"), "things").expect("moved"));
        }
        assert_ne!(places[0], places[1], "the first is not overwritten");
        let now = SystemTime::now();
        trash.expire(now + 6 * DAY);
        assert!(places.iter().all(|place| place.is_file()));
        trash.expire(now + 9 * DAY);
        assert!(!places.iter().any(|place| place.exists()));
        assert!(!trash.empty(), "nothing is left that is ours");
        assert!(data.join("trash/not-a-day").is_dir());
        fs::remove_dir_all(&data).expect("removed");
    }
}
