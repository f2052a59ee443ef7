use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// A directory that things are made in, and never outside of.
///
/// Each step down opens one name and follows no link, so it does not matter what the tree holds or
/// who else changes it meanwhile.
pub(crate) struct Directory(OwnedFd);

impl Directory {
    /// Opens a directory that exists; here links are followed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens a directory in this one.
    pub(crate) fn enter(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(&self.0, name, flags, Mode::empty())?))
    }

    /// The same directory again.
    pub(crate) fn reopen(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Makes a directory and opens it, with mode 0755 whatever the process' mask is.
    pub(crate) fn make(&self, name: &OsStr) -> io::Result<Self> {
        rustix::fs::mkdirat(&self.0, name, DIRECTORY_MODE)?;
        let made = self.enter(name)?;
        set_mode(&made.0, DIRECTORY_MODE)?;
        Ok(made)
    }

    /// Makes a file that was not there, to be written.
    pub(crate) fn create(&self, name: &OsStr, is_executable: bool) -> io::Result<File> {
        let mode = Mode::from_raw_mode(if is_executable { 0o755 } else { 0o644 });
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, mode)?;
        set_mode(&file, mode)?;
        Ok(file.into())
    }

    /// Makes a symbolic link; whether it may point there is not asked here.
    pub(crate) fn link(&self, name: &OsStr, target: &Path) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    /// Gives a file a second name. A symbolic link would not be followed.
    pub(crate) fn hard_link(&self, name: &OsStr, from: &Self, original: &OsStr) -> io::Result<()> {
        let flags = AtFlags::empty();
        Ok(rustix::fs::linkat(from.0.as_fd(), original, &self.0, name, flags)?)
    }
}

/// Where the process' mask has taken nothing away, there is nothing to change: a look is a fraction of
/// what a change costs, which file systems write to their journals.
fn set_mode(file: impl AsFd, mode: Mode) -> io::Result<()> {
    let found = Mode::from_raw_mode(rustix::fs::fstat(&file)?.st_mode & 0o7777);
    if found != mode {
        rustix::fs::fchmod(&file, mode)?;
    }
    Ok(())
}
