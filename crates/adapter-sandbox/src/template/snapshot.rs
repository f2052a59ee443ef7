//! Copies of the host's configuration: small, and open to everybody on the host.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::sys;

/// The most bytes of all files together, and the most files and directories. The certificates of a
/// distribution are a few megabytes.
const MOST_BYTES: u64 = 32 << 20;
const MOST_ENTRIES: usize = 20_000;

/// How often it is looked whether the host's files have changed.
const EVERY: Duration = Duration::from_secs(1);

/// What has been copied, and what that looked like.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// The directories, and what was copied by name. A file is usually changed by putting another
    /// in its place, which changes its directory.
    sources: Vec<(PathBuf, Stamp)>,
    bytes: u64,
    entries: usize,
    looked_at: Duration,
}

#[derive(PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        let changed = (found.ctime(), found.ctime_nsec());
        Self { device: found.dev(), inode: found.ino(), changed }
    }
}

impl Snapshot {
    /// Copies a file, link or directory, less what not everybody may read.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::FileTooLarge`] if that were too much; a part may have been copied then.
    pub(crate) fn take(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let found = fs::symlink_metadata(from)?;
        if !found.is_dir() {
            self.sources.push((from.to_owned(), Stamp::of(&found)));
        }
        self.copy(from, &found, to)
    }

    fn copy(&mut self, from: &Path, found: &Metadata, to: &Path) -> io::Result<()> {
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mode = found.mode() & 0o777;
        if found.is_symlink() {
            symlink(fs::read_link(from)?, to)
        } else if found.is_dir() && mode & 0o5 == 0o5 {
            fs::DirBuilder::new().mode(0o755).create(to)?;
            self.sources.push((from.to_owned(), Stamp::of(found)));
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                self.copy(&entry.path(), &entry.metadata()?, &to.join(entry.file_name()))?;
            }
            Ok(())
        } else if found.is_file() && mode & 0o4 != 0 {
            self.bytes += found.len();
            if self.bytes > MOST_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            fs::copy(from, to)?;
            fs::set_permissions(to, fs::Permissions::from_mode(mode & 0o555 | 0o444))
        } else {
            Ok(())
        }
    }

    /// Whether the host's files have changed. Looks from time to time only.
    pub(crate) fn is_stale(&mut self) -> bool {
        let now = sys::now();
        if now < self.looked_at + EVERY {
            return false;
        }
        self.looked_at = now;
        self.sources.iter().any(|(path, stamp)| {
            !fs::symlink_metadata(path).is_ok_and(|found| Stamp::of(&found) == *stamp)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_open_to_everybody_is_copied_until_it_changes() {
        let name = format!("hearth-snapshot-{}", std::process::id());
        let place = Place(std::env::temp_dir().join(name));
        let (from, to) = (place.0.join("from"), place.0.join("to"));
        fs::create_dir_all(from.join("certs")).expect("made");
        for (name, mode) in [("certs/open.pem", 0o644), ("key.pem", 0o640), ("program", 0o4755)] {
            let path = from.join(name);
            fs::write(&path, name).expect("written");
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
        }
        symlink("/elsewhere", from.join("link")).expect("made");
        let mut snapshot = Snapshot::default();
        snapshot.take(&from, &to).expect("copied");
        assert_eq!(fs::read_to_string(to.join("certs/open.pem")).expect("there"), "certs/open.pem");
        assert_eq!(fs::read_link(to.join("link")).expect("there"), Path::new("/elsewhere"));
        assert!(!to.join("key.pem").exists(), "not everybody may read it");
        let mode = fs::metadata(to.join("program")).expect("there").mode();
        assert_eq!(mode & 0o7777, 0o555);

        assert!(!snapshot.is_stale());
        fs::write(from.join("certs/new.pem"), "new").expect("written");
        assert!(!snapshot.is_stale(), "it has just looked");
        snapshot.looked_at = Duration::ZERO;
        assert!(snapshot.is_stale());
    }
}
