//! A socket for the users of this machine who own the daemon: its own user, and root.

use std::{
    fs::{self, File, Permissions},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use tokio::net::{TcpStream, UnixListener};
use tracing::warn;

/// Whom local clients count as: somebody on this machine.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Listens on a Unix socket in a directory, and accepts no one but this process's user and root,
/// whom the kernel vouches for. Dropping it removes the socket.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalListener {
    /// Binds a socket of that name, in place of one that an earlier process has left. There may be
    /// only one process that does so, and the directory must be nobody else's. Its path may be of
    /// any length.
    pub fn bind(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The address of a socket has 108 bytes; by this name a path is always short enough.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = i32::try_from(flags.bits()).expect("flags are small");
        let opened = File::options().read(true).custom_flags(flags).open(directory)?;
        let short = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
        let listener = UnixListener::bind(short)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Waits for somebody who may connect. Others are turned away; nothing is lost by dropping the
    /// future.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let ours = rustix::process::geteuid().as_raw();
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if [ours, 0].contains(&peer.uid()) => {}
                Ok(peer) => {
                    warn!(user = peer.uid(), "refused another user's connection");
                    continue;
                }
                Err(_) => continue,
            }
            // Both are connected streams; nothing that is done with them asks for more.
            let descriptor = OwnedFd::from(stream.into_std()?);
            return Ok((TcpStream::from_std(descriptor.into())?, ADDRESS));
        }
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // Whoever connects later is told that nobody listens, with or without it.
        let _ = fs::remove_file(&self.path);
    }
}
