use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, net::sockopt::socket_peercred};

use crate::{ClientError, error::reason};

/// The way to a daemon's socket, which stays open and the same whatever is renamed meanwhile.
#[derive(Debug)]
pub(crate) struct LocalSocket {
    directory: File,
    name: PathBuf,
}

impl LocalSocket {
    /// Finds the socket in a daemon's data directory, and makes sure that who listens there is the
    /// directory's owner, or root.
    ///
    /// Nobody else can put a socket into a directory that only its owner may write to, so what is
    /// true of one connection is true of the next ones.
    pub(crate) fn find(directory: &Path) -> Result<Self, ClientError> {
        let name = directory.join(api::LOCAL_SOCKET);
        let unreachable = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                ClientError::OthersDirectory { directory: directory.display().to_string() }
            }
            _ => {
                ClientError::Unreachable { url: name.display().to_string(), reason: reason(&error) }
            }
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = i32::try_from(flags.bits()).expect("flags are small");
        let opened = File::options().read(true).custom_flags(flags).open(directory);
        let opened = opened.map_err(unreachable)?;
        let found = opened.metadata().map_err(unreachable)?;
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        if mode & 0o022 != 0 {
            return Err(ClientError::OpenDirectory {
                directory: directory.display().to_string(),
                mode,
            });
        }
        let local = Self { directory: opened, name: name.clone() };
        let stream = UnixStream::connect(local.path()).map_err(unreachable)?;
        let peer = socket_peercred(&stream).map_err(|error| unreachable(error.into()))?;
        let listener = peer.uid.as_raw();
        if ![owner, 0].contains(&listener) {
            return Err(ClientError::Stranger {
                socket: name.display().to_string(),
                listener,
                owner,
            });
        }
        Ok(local)
    }

    /// A path that is short enough for the address of a socket, which has 108 bytes.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{}", self.directory.as_raw_fd(), api::LOCAL_SOCKET).into()
    }

    /// Its path, for people.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }
}
