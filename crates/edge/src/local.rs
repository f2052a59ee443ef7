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

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{net::UnixStream, process::CommandExt},
        process::{Command, Stdio},
    };

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let name = format!("hearth-local-{name}-{}", std::process::id());
            // Longer than an address can be.
            let path = std::env::temp_dir().join(name).join("d".repeat(120));
            fs::create_dir_all(&path).expect("made");
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.parent().expect("made in one"));
        }
    }

    #[tokio::test]
    async fn the_owner_is_accepted_and_a_stale_socket_is_replaced() {
        let place = Place::new("owner");
        fs::write(place.0.join("a.sock"), "stale").expect("written");
        let listener = LocalListener::bind(&place.0, "a.sock").expect("bound");
        let directory = File::open(&place.0).expect("there");
        let path = format!("/proc/self/fd/{}/a.sock", directory.as_raw_fd());
        let _near = UnixStream::connect(path).expect("connected");
        let (stream, address) = listener.accept().await.expect("accepted");
        assert!(address.ip().is_loopback());
        drop((stream, listener));
        assert!(!place.0.join("a.sock").exists(), "removed");
    }

    #[tokio::test]
    async fn another_user_is_turned_away() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can become another user");
            return;
        }
        let place = Place::new("others");
        let listener = LocalListener::bind(&place.0, "a.sock").expect("bound");
        // As if the modes of files were no protection.
        fs::set_permissions(place.0.join("a.sock"), Permissions::from_mode(0o666)).expect("open");
        let script = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('a.sock'); \
                      print(s.recv(1))";
        let mut stranger = Command::new("python3");
        stranger.args(["-c", script]).current_dir(&place.0).uid(65534).stdout(Stdio::piped());
        let Ok(stranger) = stranger.spawn() else {
            println!("skipped: there is no python3");
            return;
        };
        let output = tokio::task::spawn_blocking(move || stranger.wait_with_output());
        tokio::select! {
            _ = listener.accept() => panic!("another user was accepted"),
            output = output => {
                let output = output.expect("no panic").expect("it ends");
                assert_eq!(output.stdout, b"b''\n", "it got nothing: {output:?}");
            }
        }
    }
}
