//! Directories that belong to one running program, and go with it.
//!
//! Each has a lock file that the kernel unlocks when its owner ends, however it ended. So a later
//! program can tell which directories are still somebody's, and removes the others.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use tracing::{info, warn};

use crate::paths;

const LOCK: &str = "lock";
/// How often a directory whose parent is removed meanwhile is tried to be made.
const ATTEMPTS: u32 = 100;
/// Where the process adapter notes its processes, in an owner's directory.
pub(crate) const PROCESSES: &str = "processes";

/// A directory of this program. Dropping it removes it.
pub(crate) struct OwnedDirectory {
    path: PathBuf,
    _lock: File,
}

impl OwnedDirectory {
    /// Makes a directory in `parent`, after removing those whose owners are gone.
    pub(crate) fn create(parent: &Path) -> anyhow::Result<Self> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            // The last owner of another directory there removes the parent; perhaps at this moment.
            match Self::create_once(parent) {
                Err(error) if attempts < ATTEMPTS && is_not_found(&error) => {}
                outcome => return outcome,
            }
        }
    }

    fn create_once(parent: &Path) -> anyhow::Result<Self> {
        paths::make_private(parent)
            .with_context(|| format!("could not use the directory {}", parent.display()))?;
        remove_abandoned(parent);
        let context = || format!("could not make a directory in {}", parent.display());
        (0_u32..)
            .find_map(|attempt| Self::try_create(parent, attempt).transpose())
            .expect("one of four billion names is free")
            .with_context(context)
    }

    /// None: the name is taken.
    fn try_create(parent: &Path, attempt: u32) -> io::Result<Option<Self>> {
        let path = parent.join(format!("{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(error),
        }
        let lock = File::create(path.join(LOCK))?;
        lock.lock()?;
        Ok(Some(Self { path, _lock: lock }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory in it.
    pub(crate) fn subdirectory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for OwnedDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            warn!(path = %self.path.display(), %error, "could not remove a directory");
        }
        // The parent goes with its last owner.
        if let Some(parent) = self.path.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Where directories for sockets and the like are made: short paths, perhaps in memory.
pub(crate) fn runtime_parent() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/run/hearth".into();
    }
    match absolute(std::env::var_os("XDG_RUNTIME_DIR")) {
        Some(directory) => directory.join("hearth"),
        None => format!("/tmp/hearth-{}", rustix::process::geteuid().as_raw()).into(),
    }
}

/// Where directories for code are made: on disk.
pub(crate) fn data_parent() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/hearth".into();
    }
    let home = absolute(std::env::var_os("HOME")).unwrap_or_else(std::env::temp_dir);
    let data = absolute(std::env::var_os("XDG_DATA_HOME"));
    data.unwrap_or_else(|| home.join(".local/share")).join("hearth")
}

/// A directory that a variable names. One that is empty or relative counts as not set (XDG Base
/// Directory Specification, "Basics"): the launcher has another current directory than the program.
fn absolute(variable: Option<OsString>) -> Option<PathBuf> {
    variable.map(PathBuf::from).filter(|path| path.is_absolute())
}

fn is_not_found(error: &anyhow::Error) -> bool {
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.into_iter().any(|cause| cause.kind() == io::ErrorKind::NotFound)
}

fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // Without a lock it is not ours, or its owner is just making it.
        let Ok(lock) = File::open(path.join(LOCK)) else { continue };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => continue,
        }
        info!(path = %path.display(), "removing what an earlier run left behind");
        let removed =
            adapter_process::sweep(&path.join(PROCESSES)).and_then(|()| fs::remove_dir_all(&path));
        if let Err(error) = removed {
            warn!(path = %path.display(), %error, "could not remove what an earlier run left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hearth-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn a_variable_names_a_directory_only_by_an_absolute_path() {
        let named = |value: &str| absolute(Some(value.into()));
        assert_eq!(absolute(None), None);
        assert_eq!((named(""), named("run/user")), (None, None));
        assert_eq!(named("/run/user/1000"), Some("/run/user/1000".into()));
    }

    #[test]
    fn a_directory_lives_as_long_as_its_owner() {
        let parent = scratch("lives");
        let owned = OwnedDirectory::create(&parent).expect("create");
        let other = OwnedDirectory::create(&parent).expect("create beside it");
        assert!(owned.path().is_dir(), "a live owner's directory is left alone");
        assert_ne!(owned.path(), other.path());
        drop(owned);
        drop(other);
        assert!(!parent.exists(), "nothing is left");
    }

    #[test]
    fn directories_come_and_go_at_the_same_time() {
        let parent = scratch("churn");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        drop(OwnedDirectory::create(&parent).expect("created"));
                    }
                });
            }
        });
        assert!(!parent.exists(), "nothing is left");
    }

    #[test]
    fn an_abandoned_directory_is_removed_and_a_strangers_is_not() {
        let parent = scratch("abandoned");
        let abandoned = parent.join("1-0");
        fs::create_dir_all(abandoned.join("code")).expect("create");
        File::create(abandoned.join(LOCK)).expect("a lock that nobody holds");
        let strangers = parent.join("other");
        fs::create_dir(&strangers).expect("create");

        let owned = OwnedDirectory::create(&parent).expect("create");
        assert!(!abandoned.exists());
        assert!(strangers.exists());
        drop(owned);
        fs::remove_dir_all(&parent).expect("remove");
    }
}
