//! Who owns what on a host: each launcher takes a number, and everything it makes carries it.
//!
//! The number belongs to whoever holds a lock that ends with its process, so what an owner left
//! behind when it was killed is found by taking its lock.

use std::{
    fs::{self, File},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    net::sockopt,
};

/// The most owners on one host at a time.
pub(crate) const MOST: u32 = 16;

/// A number that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) number: u32,
    /// Holds the lock and everything else that is on disk.
    pub(crate) directory: PathBuf,
    _lock: File,
    /// Owners with different state directories meet here. The name is gone with the process.
    _name: Option<UnixListener>,
}

impl Owner {
    /// Takes a number, or says that it is taken.
    pub(crate) fn take(state: &Path, number: u32) -> io::Result<Self> {
        let name = listen(number)?;
        let directory = state.join(number.to_string());
        fs::create_dir_all(&directory)?;
        let lock = File::create(directory.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        // An owner that has just ended has removed its file, whose lock then means nothing.
        let (there, ours) = (fs::metadata(directory.join("lock"))?, lock.metadata()?);
        if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Self { number, directory, _lock: lock, _name: name })
    }
}

impl Drop for Owner {
    /// Removes the directory. Never recursively: should a root still be mounted in it, its files
    /// are the host's.
    fn drop(&mut self) {
        let roots = self.directory.join("roots");
        for root in fs::read_dir(&roots).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(root.path());
        }
        for empty in [roots, self.directory.join("bare")] {
            let _ = fs::remove_dir(empty);
        }
        let _ = fs::remove_file(self.directory.join("lock"));
        let _ = fs::remove_dir(&self.directory);
        if let Some(state) = self.directory.parent() {
            let _ = fs::remove_dir(state);
        }
    }
}

/// Takes the name of a number. Anybody on the host may bind any name, so one that another user
/// holds means nothing, and the file has to do.
fn listen(number: u32) -> io::Result<Option<UnixListener>> {
    let user = rustix::process::getuid();
    let name = format!("hearth-sandbox-{}-{number}", user.as_raw());
    let address = SocketAddr::from_abstract_name(name)?;
    match UnixListener::bind_addr(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = UnixStream::connect_addr(&address)
                .and_then(|stream| Ok(sockopt::socket_peercred(&stream)?.uid));
            if holder.is_ok_and(|holder| holder == user) { Err(error) } else { Ok(None) }
        }
        bound => bound.map(Some),
    }
}
