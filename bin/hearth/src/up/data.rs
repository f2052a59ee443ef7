//! The data directory: whose it is, and what this machine has.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::exit::{Failure, Fatal};

/// Instances that a machine has memory for, roughly: an idle Node.js takes 40 MiB.
const BYTES_OF_AN_INSTANCE: u64 = 96 << 20;

/// A data directory that nobody else uses.
pub(crate) struct DataLock {
    _file: File,
}

/// Where everything is kept if nobody says otherwise: as the commands look for the token.
pub(crate) fn default_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/hearth".into();
    }
    std::env::home_dir().unwrap_or_else(std::env::temp_dir).join(".local/share/hearth")
}

/// The most instances if nobody says otherwise.
pub(crate) fn usual_instances() -> u32 {
    let memory = rustix::system::sysinfo().totalram;
    u32::try_from(memory / BYTES_OF_AN_INSTANCE).unwrap_or(u32::MAX).clamp(16, 1000)
}

impl DataLock {
    /// Makes the directory if it is missing, and keeps other daemons out of it.
    pub(crate) fn take(directory: &Path) -> anyhow::Result<Self> {
        let context = || format!("could not use the data directory {}", directory.display());
        if !directory.is_dir() {
            if let Some(parent) = directory.parent() {
                fs::create_dir_all(parent).with_context(context)?;
            }
            // Logs, secrets and code of functions: nobody else's business.
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(context);
                }
                _ => {}
            }
        }
        let file = File::create(directory.join("up.lock")).with_context(context)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "another daemon uses {}; stop it, or choose another directory with --data",
                    directory.display()
                );
                Err(Fatal::new(Failure::Unavailable, message).into())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(context),
        }
    }
}
