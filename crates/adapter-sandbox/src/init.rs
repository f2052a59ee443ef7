//! The first process of an instance: builds its world, starts the worker, then waits for orders
//! and collects what ends.
//!
//! It is a copy of the launcher, made by `clone3`, and never returns into the launcher's code.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use model::{Limits, paths};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Mode,
    mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount},
    process::{DumpableBehavior, Pid, Signal, WaitOptions},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags},
};

use crate::{
    allowance::{self, Allowance},
    fault::{Fault, Step},
    mounts::{attach, detached_copy},
    priority,
    root::{self, Root},
    seccomp::Filters,
    sys,
    wire::{self, Order, Report, Status},
    worker::Worker,
};

const SCRATCH: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// The id that the worker has inside.
pub(crate) const USER: u32 = 1000;

/// What an init needs, prepared while the launcher could still refuse.
pub(crate) struct Plan {
    pub(crate) root: Root,
    /// The directory of its socket, detached.
    pub(crate) socket: Option<OwnedFd>,
    /// Its groups on cgroup v1, opened for joining.
    pub(crate) groups: Vec<OwnedFd>,
    /// Whether they decide who has processor time.
    pub(crate) has_weight: bool,
    pub(crate) limits: Limits,
    /// Whether its network namespace is new and nobody has set it up.
    pub(crate) raise_loopback: bool,
    pub(crate) filters: Rc<Filters>,
    pub(crate) allowance: Allowance,
    pub(crate) worker: Worker,
    /// Whether a zygote is to fork the worker, if it can.
    pub(crate) waits_for_zygote: bool,
}

/// Ends the process if its code unwinds: the launcher's frames are further up this stack.
struct NeverUnwind;

impl Drop for NeverUnwind {
    fn drop(&mut self) {
        sys::exit(1);
    }
}

/// Runs an init, with its connection to the launcher.
pub(crate) fn run(plan: &Plan, launcher: &OwnedFd) -> ! {
    let _guard = NeverUnwind;
    let mut init = Init { plan, launcher, buffer: vec![0; 4096], places: None };
    match init.start() {
        Ok(Some((worker, signals))) => init.watch(worker, &signals),
        Ok(None) => {}
        Err(fault) => init.report(&Report::Failed(fault)),
    }
    sys::exit(0)
}

struct Init<'a> {
    plan: &'a Plan,
    launcher: &'a OwnedFd,
    buffer: Vec<u8>,
    places: Option<Places>,
}

/// Directories for overlays over the function's code. Gone after the attach.
struct Places {
    /// Where changes are kept.
    upper: OwnedFd,
    work: OwnedFd,
    empty: OwnedFd,
}

impl Init<'_> {
    /// `None` if the launcher went away first.
    fn start(&mut self) -> Result<Option<(Pid, OwnedFd)>, Fault> {
        // First of all, so that everything made from here on is on the instance's account.
        for group in &self.plan.groups {
            rustix::io::write(group, b"0").step("join a cgroup")?;
        }
        // Its launcher had another user for a moment when it made it, which closed its own files in
        // /proc to it. Becoming the instance's user closes them again.
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
            .step("open its own /proc")?;
        priority::step_back(self.plan.has_weight).step("step back behind the host")?;
        // It begins where its process is, so only now.
        sys::unshare(UnshareFlags::NEWCGROUP).step("make a cgroup namespace")?;
        self.close_foreign();
        if !matches!(self.receive(), Some((Order::Go, _))) {
            return Ok(None);
        }
        become_user().step("become the instance's user")?;
        // Only now: changing one's user clears it. A launcher that ended earlier has closed the
        // connection, which `watch` notices.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .step("tie itself to the launcher")?;
        self.build()?;
        let signals = sys::child_signals().step("listen for signals")?;
        let Some(worker) = self.worker()? else { return Ok(None) };
        self.confine().step("confine the init")?;
        self.report(&Report::Started);
        Ok(Some((worker, signals)))
    }

    /// Starts the worker, or learns who it is.
    fn worker(&mut self) -> Result<Option<Pid>, Fault> {
        if self.plan.waits_for_zygote {
            // Whoever enters must be allowed to look at the process whose namespaces these are.
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
                .step("open up for the worker")?;
            self.report(&Report::Built);
            match self.receive() {
                Some((Order::Adopt(pid), _)) => return Ok(Pid::from_raw(pid)),
                Some((Order::Start, _)) => {}
                _ => return Ok(None),
            }
        }
        self.plan.worker.start(&self.plan.filters.worker).map(Some)
    }

    fn close_foreign(&self) {
        let plan = self.plan;
        let mut kept = vec![self.launcher.as_fd()];
        kept.extend(plan.root.descriptors());
        kept.extend(plan.socket.as_ref().map(AsFd::as_fd));
        kept.extend(plan.worker.output.as_ref().map(AsFd::as_fd));
        sys::close_all_but(&kept);
    }

    fn build(&mut self) -> Result<(), Fault> {
        let root = self.plan.root.assemble()?;
        let flags =
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        self.plan.allowance.limit().step("set resource limits")?;
        // Where they cannot be written, `weaknesses` says so.
        let _ = self.plan.allowance.write().and_then(|()| allowance::forbid_namespaces());
        // While the launcher's /proc is in sight, without which the kernel would refuse.
        mount("proc", root.join("proc"), "proc", flags, None).step("mount /proc")?;
        enter(&root).step("enter the root")?;
        self.places = Some(self.scratch().step("mount /tmp")?);
        if let Some(socket) = &self.plan.socket {
            attach(socket, Path::new("/run/hearth")).step("show the socket")?;
        }
        rustix::system::sethostname(b"hearth").step("set the host name")?;
        if self.plan.raise_loopback {
            sys::raise_loopback().step("raise the loopback interface")?;
        }
        Ok(())
    }

    /// One sized file system holds `/tmp`, `/dev/shm` and the overlay's changes. Its root stays
    /// out of sight below the `/tmp` that is mounted over it.
    fn scratch(&self) -> io::Result<Places> {
        let options = format!("mode=0700,{}", scratch_size(&self.plan.limits));
        mount("scratch", "/tmp", "tmpfs", SCRATCH, CString::new(options)?.as_c_str())?;
        for (name, mode) in
            [("tmp", 0o1777), ("shm", 0o1777), ("upper", 0o755), ("work", 0o700), ("empty", 0o755)]
        {
            let path = Path::new("/tmp").join(name);
            fs::create_dir(&path)?;
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode))?;
        }
        let places = Places {
            upper: open_place("/tmp/upper")?,
            work: open_place("/tmp/work")?,
            empty: open_place("/tmp/empty")?,
        };
        attach(detached_copy(Path::new("/tmp/shm"))?, Path::new("/dev/shm"))?;
        attach(detached_copy(Path::new("/tmp/tmp"))?, Path::new("/tmp"))?;
        Ok(places)
    }

    /// What is mounted at `/tmp` is a part of the file system that all scratch files share.
    fn resize_scratch(&self, limits: &Limits) -> io::Result<()> {
        let old = &self.plan.limits;
        let size = |limits: &Limits| (limits.scratch_bytes, limits.scratch_inodes);
        if size(old) == size(limits) {
            return Ok(());
        }
        let options = CString::new(scratch_size(limits))?;
        Ok(mount_remount("/tmp", SCRATCH, options.as_c_str())?)
    }

    /// The worker runs; an init needs little from here on. It keeps its capabilities over its own
    /// user namespace until the function's code is attached.
    fn confine(&self) -> io::Result<()> {
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        rustix::thread::set_no_new_privs(true)?;
        sys::install_filter(&self.plan.filters.init)
    }

    fn watch(&mut self, worker: Pid, signals: &OwnedFd) {
        sys::close_all_but(&self.needed(signals));
        loop {
            let mut ready =
                [PollFd::new(self.launcher, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            if rustix::io::retry_on_intr(|| poll(&mut ready, None)).is_err() {
                return;
            }
            let [has_order, has_ended] = [0, 1].map(|at| !ready[at].revents().is_empty());
            if has_ended && let Some(status) = collect(worker, signals) {
                return self.report(&Report::Ended(status));
            }
            if has_order && !self.obey(worker) {
                return;
            }
        }
    }

    fn needed<'a>(&'a self, signals: &'a OwnedFd) -> Vec<std::os::fd::BorrowedFd<'a>> {
        let mut needed = vec![self.launcher.as_fd(), signals.as_fd()];
        if let Some(Places { upper, work, empty }) = &self.places {
            needed.extend([upper.as_fd(), work.as_fd(), empty.as_fd()]);
        }
        needed
    }

    /// False once there is nobody to obey.
    fn obey(&mut self, worker: Pid) -> bool {
        match self.receive() {
            Some((Order::Attach(limits), Some(artifact))) => {
                let result = self.attach(worker, limits.as_deref(), &artifact);
                self.report(&Report::Attached(result));
            }
            Some((Order::Terminate, _)) => {
                // The worker leads its own process group.
                let _ = rustix::process::kill_process_group(worker, Signal::TERM);
            }
            Some((Order::Attach(_) | Order::Go | Order::Start | Order::Adopt(_), _)) => {}
            None => return false,
        }
        true
    }

    fn attach(
        &mut self,
        worker: Pid,
        limits: Option<&Limits>,
        artifact: &OwnedFd,
    ) -> Result<(), Fault> {
        if let Some(limits) = limits {
            self.resize_scratch(limits).step("resize /tmp")?;
            self.plan.worker.relimit(worker, limits).step("change resource limits")?;
        }
        let places = self.places.take().ok_or_else(|| Fault::new("attach twice", libc::EBUSY))?;
        attach(artifact, Path::new(paths::CODE)).step("show the artifact")?;
        let overlay = writable_overlay(&places);
        if overlay.is_ok() {
            // Another instance may have the same artifact: its inodes go out of sight.
            let code = Path::new(paths::CODE);
            let empty = format!("/proc/self/fd/{}", places.empty.as_raw_fd());
            root::overlay(Path::new(&empty), code, code).step("show the artifact")?;
        } else {
            // Old kernels have no overlay in user namespaces. The function cannot write next to
            // its code then.
            let copy = detached_copy(Path::new(paths::CODE)).step("copy the artifact's mount")?;
            attach(copy, Path::new(paths::FUNCTION)).step("show the function")?;
        }
        let none = CapabilitySet::empty();
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: none, permitted: none, inheritable: none },
        )
        .step("drop the init's capabilities")
    }

    fn receive(&mut self) -> Option<(Order, Option<OwnedFd>)> {
        wire::receive(self.launcher, &mut self.buffer).ok().flatten()
    }

    /// A launcher that is gone needs no report.
    fn report(&self, report: &Report) {
        let _ = wire::send(self.launcher, report, None);
    }
}

fn become_user() -> io::Result<()> {
    use rustix::{
        io::Errno,
        process::{Gid, Uid},
        thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
    };
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
    match set_thread_groups(&[]) {
        // Without root the kernel insists on the groups one has.
        Err(Errno::PERM) => {}
        result => result?,
    }
    set_thread_res_gid(group, group, group)?;
    Ok(set_thread_res_uid(user, user, user)?)
}

pub(crate) fn enter(root: &Path) -> io::Result<()> {
    rustix::process::chdir(root)?;
    // Both at one place: the old root is then on top, and goes with the next call.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn scratch_size(Limits { scratch_bytes, scratch_inodes, .. }: &Limits) -> String {
    format!("size={scratch_bytes},nr_inodes={scratch_inodes}")
}

fn open_place(path: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{OFlags, open};
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn writable_overlay(Places { upper, work, .. }: &Places) -> io::Result<()> {
    let options = format!(
        "lowerdir={},upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{},userxattr",
        paths::CODE,
        upper.as_raw_fd(),
        work.as_raw_fd()
    );
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = CString::new(options)?;
    Ok(mount("function", paths::FUNCTION, "overlay", flags, options.as_c_str())?)
}

/// Collects everything that has ended. The worker's status, if it is among it.
fn collect(worker: Pid, signals: &OwnedFd) -> Option<Status> {
    let mut queued = [0; 1024];
    let _ = rustix::io::read(signals, &mut queued);
    let mut found = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == worker {
            found = Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Status::Code(code),
                (_, Some(signal)) => Status::Signal(signal),
                _ => Status::Unknown,
            });
        }
    }
    found
}
