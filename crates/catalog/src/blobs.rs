use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Where files are written until they are complete.
const UNFINISHED: &str = "unfinished";
const BUFFER: usize = 64 << 10;

/// Files named by their SHA-256, in one directory that nobody else writes to.
///
/// A blob is there completely or not at all, whenever the daemon or the machine stops.
#[derive(Debug)]
pub struct Blobs {
    root: PathBuf,
    serial: AtomicU64,
    /// Held while a blob comes or goes, so that none goes that was just found to be there.
    changing: Mutex<()>,
}

/// Why a blob was not stored, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// What was to be stored could not be read.
    #[error("could not read what is to be stored")]
    Source(#[source] io::Error),
    /// The directory of the blobs does not do what is asked of it.
    #[error("could not {step} in the blob store")]
    Store {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no such blob.
    #[error("no blob `{0}`")]
    Unknown(Digest),
}

impl BlobError {
    /// Whether the disk is full: the same may succeed once there is room again.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store { source, .. } if crate::is_disk_full(source))
    }
}

fn to(step: &'static str) -> impl Fn(io::Error) -> BlobError {
    move |source| BlobError::Store { step, source }
}

impl Blobs {
    /// Opens the store; makes it if it is missing. Removes what a killed daemon left unfinished, so
    /// there may be only one at a time.
    pub fn open(root: &Path) -> Result<Self, BlobError> {
        let unfinished = root.join(UNFINISHED);
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(to("remove unfinished files")(error));
            }
            _ => {}
        }
        make_directory(&unfinished).map_err(to("make a directory"))?;
        Ok(Self { root: root.into(), serial: AtomicU64::new(0), changing: Mutex::new(()) })
    }

    /// Stores all that can be read, and returns its name and size. Storing the same again changes
    /// nothing. Durable when it returns; after an error or a crash nothing is left.
    pub fn put(&self, from: impl Read) -> Result<(Digest, u64), BlobError> {
        let unfinished = self.unfinished()?;
        let (digest, size) = unfinished.fill(from)?;
        let path = self.path(&digest);
        let _changing = self.changing.lock().expect("no panic while the lock is held");
        // Its time says that somebody is about to use it (`sweep`).
        let now = SystemTime::now();
        match OpenOptions::new().write(true).open(&path).and_then(|file| file.set_modified(now)) {
            Ok(()) => return Ok((digest, size)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(to("look up a blob")(error)),
        }
        self.keep(&unfinished, &path).map_err(to("keep a blob"))?;
        Ok((digest, size))
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, BlobError> {
        File::open(self.path(digest)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BlobError::Unknown(*digest),
            _ => to("open a blob")(error),
        })
    }

    /// Whether there is such a blob.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Removes a blob. Whether it was there; who has it open can still read it.
    pub fn remove(&self, digest: &Digest) -> Result<bool, BlobError> {
        let _changing = self.changing.lock().expect("no panic while the lock is held");
        match fs::remove_file(self.path(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(to("remove a blob")(error)),
        }
    }

    /// Moves a blob out of the store, to a path in the same file system. Whether it was there.
    pub fn move_away(&self, digest: &Digest, to: &Path) -> Result<bool, BlobError> {
        let _changing = self.changing.lock().expect("no panic while the lock is held");
        match fs::rename(self.path(digest), to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(BlobError::Store { step: "move away", source: error }),
        }
    }

    /// All blobs, in no order.
    pub fn list(&self) -> Result<Vec<Digest>, BlobError> {
        let mut blobs = Vec::new();
        for directory in fs::read_dir(&self.root).map_err(to("list blobs"))? {
            let directory = directory.map_err(to("list blobs"))?;
            if directory.file_name().len() != 2 {
                continue;
            }
            for file in fs::read_dir(directory.path()).map_err(to("list blobs"))? {
                let name = file.map_err(to("list blobs"))?.file_name();
                blobs.extend(name.to_str().and_then(|name| name.parse::<Digest>().ok()));
            }
        }
        Ok(blobs)
    }

    /// Removes blobs that are not in use and were not stored again within the last `grace`, and
    /// returns their names. The grace is for blobs whose use nobody has noted yet.
    pub fn sweep(&self, in_use: &[Digest], grace: Duration) -> Result<Vec<Digest>, BlobError> {
        let in_use: HashSet<_> = in_use.iter().collect();
        let now = SystemTime::now();
        let mut removed = Vec::new();
        for digest in self.list()?.into_iter().filter(|digest| !in_use.contains(digest)) {
            let _changing = self.changing.lock().expect("no panic while the lock is held");
            let path = self.path(&digest);
            let Ok(stored) = fs::metadata(&path).and_then(|metadata| metadata.modified()) else {
                continue;
            };
            // A clock that was set back makes what was stored before look like of the future.
            if now.duration_since(stored).unwrap_or_default() >= grace {
                fs::remove_file(&path).map_err(to("remove a blob"))?;
                removed.push(digest);
            }
        }
        Ok(removed)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join(&name[..2]).join(name)
    }

    fn unfinished(&self) -> Result<Unfinished, BlobError> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(UNFINISHED).join(serial.to_string());
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        Ok(Unfinished { file: file.map_err(to("make a file"))?, path })
    }

    fn keep(&self, unfinished: &Unfinished, path: &Path) -> io::Result<()> {
        let directory = path.parent().expect("made of a directory and a name");
        if !directory.is_dir() {
            make_directory(directory)?;
            File::open(&self.root)?.sync_all()?;
        }
        fs::rename(&unfinished.path, path)?;
        File::open(directory)?.sync_all()
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A file that is being written. Dropping it removes it, unless it was renamed.
struct Unfinished {
    file: File,
    path: PathBuf,
}

impl Unfinished {
    fn fill(&self, mut from: impl Read) -> Result<(Digest, u64), BlobError> {
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(BlobError::Source(error)),
            };
            hash.update(&buffer[..length]);
            (&self.file).write_all(&buffer[..length]).map_err(to("write a blob"))?;
            size += u64::try_from(length).unwrap_or(u64::MAX);
        }
        self.file.sync_all().map_err(to("write a blob"))?;
        Ok((Digest::from_bytes(hash.finalize().into()), size))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It fails after the rename; what is left otherwise goes when the store is opened again.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
