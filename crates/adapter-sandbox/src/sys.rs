//! The system calls that `rustix` does not wrap. All `unsafe` code of the crate is here.

use std::{
    ffi::{CStr, CString},
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

use rustix::{process::Pid, thread::UnshareFlags};
use tokio::io::unix::AsyncFd;

/// `libc` has it in a type that is too small.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A process made by [`clone3`].
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// Forks into the given namespaces, and on cgroup v2 into a group. Returns `None` in the child.
///
/// The caller must be single-threaded, as a launcher and an init are: then the child may do
/// whatever its parent could, and holds no lock that nobody will release. The child of any other
/// process may make system calls, and must then [`exit`].
pub(crate) fn clone3(namespaces: i32, group: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = u64::from(namespaces.cast_unsigned()) | libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: no stack and no CLONE_VM: the child is a copy, as after fork, and `args` outlives
    // the call. That no lock is left behind is the callers' contract.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, mem::size_of_val(&args)) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // SAFETY: the kernel has just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Child { pid: pid.expect("the kernel returns a positive pid"), pidfd }))
        }
    }
}

/// Ends the process at once, without running anything else.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(status) }
}

/// Leaves the namespaces shared with the parent.
pub(crate) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // SAFETY: only `CLONE_FILES` can break what other code relies on, and it is never passed.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

/// Replaces the process. Returns only on failure.
pub(crate) fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer and, like the strings, live until the call ends.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// What [`set_mount_attributes`] changes.
#[derive(Default)]
pub(crate) struct MountAttributes<'a> {
    pub(crate) set: u64,
    pub(crate) private: bool,
    pub(crate) user_namespace: Option<BorrowedFd<'a>>,
}

/// Changes a mount and all mounts below it.
pub(crate) fn set_mount_attributes(
    mount: impl AsFd,
    attributes: MountAttributes<'_>,
) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut attr: libc::mount_attr = unsafe { mem::zeroed() };
    attr.attr_set = attributes.set;
    if attributes.private {
        attr.propagation = libc::MS_PRIVATE;
    }
    if let Some(namespace) = attributes.user_namespace {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = namespace.as_raw_fd() as u64;
    }
    // SAFETY: the path is an empty string, and `attr` is read during the call only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            mem::size_of_val(&attr),
        )
    };
    check(result)
}

/// Closes every descriptor but the standard ones and these.
///
/// Whatever still owns one of the others must never be used or dropped again: the caller is a
/// fresh child that leaves through [`exit`] or [`execute`].
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1, 0);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0);
}

/// Marks every descriptor but those below a number as not inherited by the next program.
pub(crate) fn inherit_only_below(number: u32) {
    close_range(number, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: u32) {
    // SAFETY: takes no pointers; that nobody uses what it closes is the callers' contract.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// Makes a descriptor available under a number for the next program too, in a child that is about
/// to run it. Whatever has that number already must not be used or dropped again.
pub(crate) fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers; that nobody uses what it replaces is the callers' contract.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into())
}

/// The descriptor with this number, which the process was started with and nothing else owns.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: it is open, and by the caller's contract nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets tokio watch a descriptor.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` returns the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Gives a command's process this descriptor as number 3.
pub(crate) fn pass_as_three(command: &mut tokio::process::Command, fd: OwnedFd) {
    let pass = move || {
        if fd.as_raw_fd() == 3 {
            // SAFETY: takes no pointers.
            check(unsafe { libc::fcntl(3, libc::F_SETFD, 0) }.into())
        } else {
            // SAFETY: takes no pointers; whatever was 3 is about to be closed by exec anyway.
            check(unsafe { libc::dup2(fd.as_raw_fd(), 3) }.into())
        }
    };
    // SAFETY: the closure makes one async-signal-safe call and allocates nothing.
    unsafe { command.pre_exec(pass) };
}

/// A descriptor that is readable when a child has ended. Blocks the signal's usual delivery, and
/// does without it where a child has only stopped: those who can be stopped would keep us awake.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let signals = signal_set(&[libc::SIGCHLD]);
    // SAFETY: all-zero is a valid value of this plain structure, and the default action is no code;
    // the set is valid and read during the calls only.
    let fd = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, &raw const action, ptr::null_mut());
        libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut());
        libc::signalfd(-1, &raw const signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    check(fd.into())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes all that is queued in a descriptor for signals.
pub(crate) fn drain(signals: &OwnedFd) {
    let mut queued = [0; 1024];
    let _ = rustix::io::read(signals, &mut queued);
}

/// A child that has ended and is still to be collected, of whatever kind (`__WALL`). One that
/// somebody traces is none until that has an end.
pub(crate) fn ended_child() -> Option<Pid> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    wait_for(libc::P_ALL, 0, options).ok().flatten()
}

/// Collects a child that has ended, unless somebody has.
pub(crate) fn collect_child(pid: Pid) {
    let id = pid.as_raw_nonzero().get().unsigned_abs();
    let _ = wait_for(libc::P_PID, id, libc::WEXITED | libc::WNOHANG | libc::__WALL);
}

/// Whether there is any child, running or not.
pub(crate) fn has_children() -> bool {
    wait_for(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL).is_ok()
}

fn wait_for(kind: libc::idtype_t, id: libc::id_t, options: i32) -> io::Result<Option<Pid>> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: the structure lives as long as the call, which writes it.
    check(unsafe { libc::waitid(kind, id, &raw mut info, options) }.into())?;
    // SAFETY: `waitid` has filled in the fields of a child's signal, or left them zero.
    Ok(Pid::from_raw(unsafe { info.si_pid() }))
}

/// Undoes what the launcher changed about signals, for the program that is about to run.
pub(crate) fn reset_signals() {
    let none = signal_set(&[]);
    // SAFETY: the set is valid and read during the call only; the default actions are no code.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set, and the numbers are signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Puts the calling thread under a filter, for good.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions during the call and writes nothing.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
}

/// Lets a socket receive only what a filter accepts.
pub(crate) fn filter_received(
    socket: impl AsFd,
    program: &mut [libc::sock_filter],
) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(mem::size_of_val(&program)).expect("a small structure");
    // SAFETY: the kernel copies `len` instructions during the call and writes nothing.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    check(result.into())
}

/// The version of the kernel's Landlock, or -1 without it.
pub(crate) fn landlock_version() -> i64 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel reads no attributes.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0, VERSION) }
}

/// Brings the loopback interface of the current network namespace up.
pub(crate) fn raise_loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l'.cast_signed(), b'o'.cast_signed()]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is of the type that this ioctl reads, with its name terminated.
    check(
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }
            .into(),
    )
}

/// Time since the machine started.
pub(crate) fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
