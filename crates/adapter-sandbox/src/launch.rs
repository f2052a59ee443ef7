//! One launch, up to the moment when the new init has all it needs.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use model::{InstanceSocket, LaunchSpec, Limits, Network};
use rustix::{
    fs::{AtFlags, CWD, FileType, chownat, fchown, fstat},
    process::{Gid, Uid},
};

use crate::{
    allowance::Allowance,
    cgroup::{Entrance, Group, Groups},
    fault::{Fault, Step},
    idmap::IdMaps,
    ids,
    init::{self, Plan, USER},
    mounts::{READ_ONLY, detached_copy},
    network::{Lease, Networks},
    seccomp::Filters,
    sys::{self, Child, MountAttributes},
    template::Templates,
    views::Views,
    wire::{self, Order},
    worker::Worker,
};

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// What launches need and share.
pub(crate) struct Workshop {
    pub(crate) views: Views,
    pub(crate) templates: Templates,
    pub(crate) groups: Groups,
    pub(crate) networks: Networks,
    pub(crate) filters: Rc<Filters>,
    /// What each instance may take of what the kernel counts for a user.
    pub(crate) allowance: Allowance,
    pub(crate) id_maps: IdMaps,
    /// The host's ids for instances, one each. None without root: all are then the user itself.
    pub(crate) first_user: Option<u32>,
}

/// An init that has been told to go.
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) socket: OwnedFd,
    pub(crate) group: Group,
    /// Who it is on the host. None if it is who the launcher is.
    pub(crate) user: Option<u32>,
    /// What it may use now.
    pub(crate) limits: Limits,
    /// The worker that a zygote is to fork.
    pub(crate) expected: Option<Expected>,
}

/// A worker that is still to come, and the ways into its groups.
pub(crate) struct Expected {
    pub(crate) worker: Worker,
    pub(crate) groups: Vec<OwnedFd>,
    pub(crate) group: Option<OwnedFd>,
}

impl Workshop {
    /// Starts an init. After a failure nothing is left of it.
    pub(crate) fn launch(
        &mut self,
        spec: &LaunchSpec,
        output: Option<OwnedFd>,
        slot: u32,
        waits_for_zygote: bool,
    ) -> Result<Launched, Fault> {
        let user = self.first_user.map(|first| first + slot);
        let mut worker = Worker::new(spec, output)?;
        worker.has_groups = self.groups.missing().is_empty();
        let root = self.templates.root(spec)?;
        let socket = spec.socket.as_ref().map(|socket| show_socket(socket, user)).transpose()?;
        if let (Some(user), Some(output)) = (user, &worker.output) {
            give_pipe(output, user).step("hand over the output")?;
        }
        let lease = self.networks.lease(spec.network)?;
        let (group, entrance) =
            self.groups.create(spec.id.as_str(), &spec.limits).step("make the cgroups")?;
        let Entrance { v1, v2 } = entrance;
        let plan = Plan {
            root,
            socket,
            groups: v1,
            has_weight: self.groups.have_weight(),
            limits: spec.limits.clone(),
            raise_loopback: spec.network == Network::None && lease.is_none(),
            filters: Rc::clone(&self.filters),
            allowance: self.allowance,
            worker,
            waits_for_zygote,
        };
        let forked = self.fork(&plan, user, v2.as_ref(), spec.network, lease.as_ref());
        let started = forked.and_then(|(child, socket)| {
            introduce(&child, &socket, user).inspect_err(|_| discard(&child))?;
            Ok((child, socket))
        });
        match started {
            Ok((child, socket)) => {
                let Plan { worker, groups, limits, .. } = plan;
                let expected = waits_for_zygote.then_some(Expected { worker, groups, group: v2 });
                Ok(Launched { child, socket, group, user, limits, expected })
            }
            Err(fault) => {
                let _ = group.remove();
                Err(fault)
            }
        }
    }

    /// An artifact as a mount for an instance that is this user of the host.
    ///
    /// # Errors
    ///
    /// If it is no directory, or cannot be shown.
    pub(crate) fn show_artifact(&mut self, path: &Path, user: Option<u32>) -> io::Result<OwnedFd> {
        if !fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if let Some(user) = user {
            let tree = detached_copy(path)?;
            let attributes = MountAttributes {
                set: READ_ONLY,
                private: true,
                user_namespace: Some(self.id_maps.get(user)?.as_fd()),
            };
            // Not every file system can do this. The files then have no owner that the function
            // knows.
            if sys::set_mount_attributes(&tree, attributes).is_ok() {
                return Ok(tree);
            }
        }
        read_only_copy(path)
    }

    fn fork(
        &self,
        plan: &Plan,
        user: Option<u32>,
        group: Option<&OwnedFd>,
        network: Network,
        lease: Option<&Lease>,
    ) -> Result<(Child, OwnedFd), Fault> {
        let (ours, theirs) = wire::pair().step("make a socket for the init")?;
        let flags = match (network, lease) {
            (Network::None, None) => NAMESPACES | libc::CLONE_NEWNET,
            _ => NAMESPACES,
        };
        let clone = || sys::clone3(flags, group.map(AsFd::as_fd));
        let fork = || match ids::owned_by(user, clone)? {
            Some(child) => Ok(child),
            None => init::run(plan, &theirs),
        };
        let child = self
            .networks
            .within(lease, || self.views.apart(fork))
            .and_then(|result| result)
            .and_then(|result: io::Result<Child>| result)
            .step("make the instance's namespaces")?;
        Ok((child, ours))
    }
}

/// Gives the new user namespace its one user, and lets the init go on.
fn introduce(child: &Child, socket: &OwnedFd, user: Option<u32>) -> Result<(), Fault> {
    let line = format!("{USER} {} 1", user.unwrap_or(0));
    let process = Path::new("/proc").join(child.pid.as_raw_nonzero().to_string());
    for map in ["uid_map", "gid_map"] {
        fs::write(process.join(map), &line).step("map the instance's user")?;
    }
    wire::send(socket, &Order::Go, None).step("start the init")
}

/// An init that has not been told to go ends at once. Whatever keeps one that does not, the launcher
/// collects it later.
fn discard(child: &Child) {
    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
    };
    let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], Some(&second));
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), options);
}

/// A copy of the mount of the socket's directory. The instance must own the socket to connect.
fn show_socket(socket: &InstanceSocket, user: Option<u32>) -> Result<OwnedFd, Fault> {
    let directory = socket.path.parent().unwrap_or(Path::new("/"));
    let step = || format!("show {}", directory.display());
    // It is about to be given away and shown as a whole.
    if fs::read_dir(directory).step(step())?.count() > 1 {
        return Err(Fault::new(step(), libc::ENOTEMPTY));
    }
    if let Some(user) = user {
        let (owner, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
        for path in [directory, &socket.path] {
            chownat(CWD, path, owner, group, AtFlags::SYMLINK_NOFOLLOW).step(step())?;
        }
    }
    read_only_copy(directory).step(step())
}

fn read_only_copy(path: &Path) -> io::Result<OwnedFd> {
    let tree = detached_copy(path)?;
    let attributes = MountAttributes { set: READ_ONLY, private: true, ..Default::default() };
    sys::set_mount_attributes(&tree, attributes)?;
    Ok(tree)
}

/// A pipe is opened again through `/dev/stdout`, which only its owner may do.
fn give_pipe(output: &OwnedFd, user: u32) -> io::Result<()> {
    if FileType::from_raw_mode(fstat(output)?.st_mode) == FileType::Fifo {
        fchown(output, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
    }
    Ok(())
}
