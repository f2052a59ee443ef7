//! The data directory: whose it is, and what this machine has.

use std::{
    fs::{File, TryLockError},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;

use crate::{
    exit::{Failure, Fatal},
    paths,
};

/// Instances that a machine has memory for, roughly: an idle Node.js takes 40 MiB.
const BYTES_OF_AN_INSTANCE: u64 = 96 << 20;

/// The file that is locked by whoever uses a data directory.
const LOCK: &str = "up.lock";

/// A data directory that nobody else uses.
pub(crate) struct DataLock {
    _file: File,
}

/// The most instances if nobody says otherwise.
pub(crate) fn usual_instances() -> u32 {
    let memory = rustix::system::sysinfo().totalram;
    u32::try_from(memory / BYTES_OF_AN_INSTANCE).unwrap_or(u32::MAX).clamp(16, 1000)
}

impl DataLock {
    /// Makes the directory if it is missing, and keeps other daemons and other users out of it.
    pub(crate) fn take(directory: &Path) -> anyhow::Result<Self> {
        let context = || format!("could not use the data directory {}", directory.display());
        // Logs, secrets and code of functions: nobody else's business.
        paths::make_private(directory).with_context(context)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join(LOCK))
            .with_context(context)?;
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
