//! Mounts that show the owner of artifacts on disk as the user of an instance.
//!
//! Who owns what on such a mount is said by a user namespace. An instance's own cannot say it: there
//! its user is already somebody. So each slot has a second one, in which nothing ever runs, and
//! which is kept for the slot's next instances.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::Path,
};

use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::{ids::ARTIFACT_OWNER, sys};

/// The namespaces by the user that they show.
#[derive(Default)]
pub(crate) struct IdMaps {
    made: HashMap<u32, File>,
}

impl IdMaps {
    /// The namespace for an instance of this user. It takes a fork to make one.
    pub(crate) fn get(&mut self, user: u32) -> io::Result<&File> {
        use std::collections::hash_map::Entry;
        Ok(match self.made.entry(user) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(make(user)?),
        })
    }
}

fn make(user: u32) -> io::Result<File> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let Some(child) = sys::clone3(libc::CLONE_NEWUSER, None)? else {
        // Until the launcher has looked at it, or is gone.
        drop(writer);
        let _ = rustix::io::read(&reader, &mut [0; 1]);
        sys::exit(0)
    };
    let process = Path::new("/proc").join(child.pid.as_raw_nonzero().to_string());
    let line = format!("{ARTIFACT_OWNER} {user} 1");
    let made = fs::write(process.join("uid_map"), &line)
        .and_then(|()| fs::write(process.join("gid_map"), &line))
        .and_then(|()| File::open(process.join("ns/user")));
    drop(writer);
    waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    made
}
