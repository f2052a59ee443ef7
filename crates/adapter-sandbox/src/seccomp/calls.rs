//! The calls by name, and why.
//!
//! An instance has namespaces, groups and, as root, a user of its own, and what the kernel counts by
//! one of these ends where they do. A call is refused if it reaches further: to a resource that the
//! kernel has once for everybody, or to what others do.
//!
//! Refused because the kernel keeps it for all, beside what no container may do anyway (`mount`,
//! `bpf`, `perf_event_open`, `quotactl`, `swapon`, `syslog`, `init_module` and the like):
//!
//! | Call | What it reaches | Answer, and who meets it |
//! | --- | --- | --- |
//! | `io_setup` and its relatives | `fs.aio-max-nr`, one number for the host | ENOSYS, as without CONFIG_AIO |
//! | `mmap`, `shmget`, `memfd_create` of huge pages | the host's pool, on no group's account | as on a host without such pages |
//! | `clone(CLONE_PARENT)` | children of the launcher | EPERM |
//! | `sync`, `syncfs`, `fsync`, `fdatasync`, `msync(MS_SYNC)` | the host's disks | success: see [`PRETENDED`] |
//! | `fadvise64(POSIX_FADV_DONTNEED)` | pages that others read, too | success: it is advice |
//! | `cachestat`, `preadv2(RWF_NOWAIT)` | which pages others have read | ENOSYS, EOPNOTSUPP: as of a file system without it |
//! | `madvise(MADV_MERGEABLE)` | which pages of others are equal | EINVAL, as without CONFIG_KSM |
//! | `fcntl(F_SETLEASE, F_NOTIFY)` | who opens a file, and for how long it waits | EINVAL, as without them |
//! | `setrlimit`, `prlimit64` of `RLIMIT_CORE` | a helper that the host runs as root | EINVAL: `gpg` ends if it is EPERM |
//! | `membarrier` beyond one process | interrupts of every processor | EINVAL; runtimes use the private ones |
//! | `prctl(PR_SCHED_CORE)` | idle neighbours of a processor's core | EINVAL, as without CONFIG_SCHED_CORE |
//! | `sched_setattr` | the clock rate, the length of others' turns | EPERM |
//! | `ioctl(BTRFS_IOC_SYNC, BTRFS_IOC_START_SYNC)` | as `syncfs` | EPERM |
//! | `keyctl`, `add_key`, `request_key` | keys are counted for each user, and found by session | EPERM |
//! | `memfd_secret`, `userfaultfd`, `io_uring_setup`, `fanotify_init`, `kcmp`, `pidfd_getfd`, `process_vm_readv`, `ptrace`, `lookup_dcookie` | kernel code that few programs need | EPERM; libuv falls back |
//!
//! Allowed, since the kernel keeps it for less:
//!
//! - System V objects and POSIX message queues are the IPC namespace's; their memory is the group's,
//!   and queues have a limit for each user, too.
//! - `mincore` answers for pages of files only to who may write to the file (since Linux 5.2), and to
//!   everybody else says that all are there. Go and Java ask it about their own memory.
//! - `mlock` has `RLIMIT_MEMLOCK`; pipes and epoll watches are counted for each user, file locks,
//!   timers and descriptors are on the group's account. Beyond the limit of pages in pipes
//!   (`F_SETPIPE_SZ`) a user gets small pipes, not none.
//! - `sched_setscheduler`, `setpriority` and `ioprio_set` cannot raise anything without privilege or
//!   a limit (`RLIMIT_RTPRIO`, `RLIMIT_NICE`: both are 0), and reach only processes in sight.
//! - `vmsplice`, `remap_file_pages`, `rseq`, `landlock_*` and `seccomp` concern the caller's own
//!   memory and rights.

use libc::c_long;

use super::Answer;

const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

/// The parent of a worker that a zygote has forked is the launcher, outside of the instance.
const CHILD_OF_THE_PARENT: u32 = libc::CLONE_PARENT.cast_unsigned();

const MAP_HUGETLB: u32 = libc::MAP_HUGETLB.cast_unsigned();
const SHM_HUGETLB: u32 = 0o4000;
const RWF_NOWAIT: u32 = libc::RWF_NOWAIT.cast_unsigned();
const MS_SYNC: u32 = libc::MS_SYNC.cast_unsigned();
const POSIX_FADV_DONTNEED: u32 = libc::POSIX_FADV_DONTNEED.cast_unsigned();
const MADV_MERGEABLE: u32 = libc::MADV_MERGEABLE.cast_unsigned();
const PR_SCHED_CORE: u32 = 62;
/// `libc` has it as another type with other C libraries.
pub(super) const RLIMIT_CORE: u32 = 4;
/// MEMBARRIER_CMD_GLOBAL, MEMBARRIER_CMD_GLOBAL_EXPEDITED, and the registration for it.
const GLOBAL_BARRIERS: u32 = 0b111;
/// TIOCSTI and TIOCLINUX push characters into a terminal; the others are of Btrfs.
const BAD_IOCTLS: &[u32] = &[0x5412, 0x541C, BTRFS_IOC_SYNC, BTRFS_IOC_START_SYNC];
const BTRFS_IOC_SYNC: u32 = 0x9408;
const BTRFS_IOC_START_SYNC: u32 = 0x8008_9418;

/// The `fcntl` commands that only Linux has begin here (F_LINUX_SPECIFIC_BASE).
pub(super) const FIRST_OWN_FILE_CONTROL: u32 = 1024;
/// Those that are allowed: all but leases and delegations, notices of a directory's changes, and
/// what is newer than this file.
pub(super) const OWN_FILE_CONTROL: &[u32] = &[
    1025, // F_GETLEASE
    1027, // F_DUPFD_QUERY
    1028, // F_CREATED_QUERY
    1030, // F_DUPFD_CLOEXEC
    1031, // F_SETPIPE_SZ
    1032, // F_GETPIPE_SZ
    1033, // F_ADD_SEALS
    1034, // F_GET_SEALS
    1035, // F_GET_RW_HINT
    1036, // F_SET_RW_HINT
    1037, // F_GET_FILE_RW_HINT
    1038, // F_SET_FILE_RW_HINT
];

/// What is said to have been done, and is not.
///
/// All that an instance can write is in memory, where there is nothing to make durable. Done, each of
/// these would wait for the disks of the host, `fsync` even for a file that nobody has written: on
/// ext4 it costs the disk one flush of its cache every time.
pub(super) const PRETENDED: &[c_long] =
    &[libc::SYS_sync, libc::SYS_syncfs, libc::SYS_fsync, libc::SYS_fdatasync];

/// What does not exist, as on kernels that are built without it or are older.
pub(super) const ABSENT: &[c_long] = &[
    libc::SYS_io_setup,
    libc::SYS_io_destroy,
    libc::SYS_io_submit,
    libc::SYS_io_cancel,
    libc::SYS_io_getevents,
    IO_PGETEVENTS,
    CACHESTAT,
];

#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: c_long = 333;
#[cfg(not(target_arch = "x86_64"))]
const IO_PGETEVENTS: c_long = 292;
const CACHESTAT: c_long = 451;

/// The calls that are allowed but for some arguments.
pub(super) fn by_argument(call: c_long) -> Option<Answer> {
    let bits = |argument, bits, errno| Answer::UnlessBits { argument, bits, errno };
    let values = |argument, values, errno| Answer::UnlessOneOf { argument, values, errno };
    Some(match call {
        libc::SYS_clone => bits(0, NAMESPACES | CHILD_OF_THE_PARENT, libc::EPERM),
        libc::SYS_mmap => bits(3, MAP_HUGETLB, libc::ENOMEM),
        libc::SYS_shmget => bits(2, SHM_HUGETLB, libc::EPERM),
        libc::SYS_memfd_create => bits(1, libc::MFD_HUGETLB, libc::ENOSYS),
        libc::SYS_msync => bits(2, MS_SYNC, super::PRETENDED),
        libc::SYS_fadvise64 => values(3, &[POSIX_FADV_DONTNEED], super::PRETENDED),
        libc::SYS_preadv2 => bits(5, RWF_NOWAIT, libc::EOPNOTSUPP),
        libc::SYS_madvise => values(2, &[MADV_MERGEABLE], libc::EINVAL),
        libc::SYS_setrlimit => values(0, &[RLIMIT_CORE], libc::EINVAL),
        libc::SYS_membarrier => bits(0, GLOBAL_BARRIERS, libc::EINVAL),
        libc::SYS_prctl => values(0, &[PR_SCHED_CORE], libc::EINVAL),
        libc::SYS_ioctl => values(1, BAD_IOCTLS, libc::EPERM),
        _ => return None,
    })
}

/// Whether a worker may make this call whatever its arguments: what Docker's default profile
/// allows without a capability, less what the table above says.
pub(super) fn is_for_workers(call: c_long) -> bool {
    EVERYWHERE.contains(&call) || OF_THIS_ARCHITECTURE.contains(&call) || UNNAMED.contains(&call)
}

/// map_shadow_stack, futex_wake, futex_wait, futex_requeue: `libc` lacks their names.
const UNNAMED: &[c_long] = &[453, 454, 455, 456];

#[rustfmt::skip] // one name a line would be five pages
const EVERYWHERE: &[c_long] = &[
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_adjtimex, libc::SYS_bind, libc::SYS_brk,
    libc::SYS_capget, libc::SYS_capset, libc::SYS_chdir, libc::SYS_clock_adjtime,
    libc::SYS_clock_getres, libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_close,
    libc::SYS_close_range, libc::SYS_connect, libc::SYS_copy_file_range, libc::SYS_dup,
    libc::SYS_dup3, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_execve, libc::SYS_execveat,
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_fallocate, libc::SYS_fchdir, libc::SYS_fchmod, libc::SYS_fchmodat,
    libc::SYS_fchmodat2, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_fgetxattr,
    libc::SYS_flistxattr, libc::SYS_flock, libc::SYS_fremovexattr, libc::SYS_fsetxattr,
    libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_ftruncate, libc::SYS_futex, libc::SYS_futex_waitv,
    libc::SYS_get_robust_list, libc::SYS_getcpu, libc::SYS_getcwd, libc::SYS_getdents64,
    libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getgroups,
    libc::SYS_getitimer, libc::SYS_getpeername, libc::SYS_getpgid, libc::SYS_getpid,
    libc::SYS_getppid, libc::SYS_getpriority, libc::SYS_getrandom, libc::SYS_getresgid,
    libc::SYS_getresuid, libc::SYS_getrlimit, libc::SYS_getrusage, libc::SYS_getsid,
    libc::SYS_getsockname, libc::SYS_getsockopt, libc::SYS_gettid, libc::SYS_gettimeofday,
    libc::SYS_getuid, libc::SYS_getxattr, libc::SYS_inotify_add_watch, libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch, libc::SYS_ioprio_get, libc::SYS_ioprio_set, libc::SYS_kill,
    libc::SYS_landlock_add_rule, libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self, libc::SYS_lgetxattr, libc::SYS_linkat, libc::SYS_listen,
    libc::SYS_listxattr, libc::SYS_llistxattr, libc::SYS_lremovexattr, libc::SYS_lseek,
    libc::SYS_lsetxattr, libc::SYS_mincore, libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_mlock,
    libc::SYS_mlock2, libc::SYS_mlockall, libc::SYS_mprotect, libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify, libc::SYS_mq_open, libc::SYS_mq_timedreceive, libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink, libc::SYS_mremap, libc::SYS_mseal, libc::SYS_msgctl, libc::SYS_msgget,
    libc::SYS_msgrcv, libc::SYS_msgsnd, libc::SYS_munlock, libc::SYS_munlockall, libc::SYS_munmap,
    libc::SYS_name_to_handle_at, libc::SYS_nanosleep, libc::SYS_newfstatat, libc::SYS_openat,
    libc::SYS_openat2, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal, libc::SYS_pipe2,
    libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect, libc::SYS_ppoll,
    libc::SYS_pread64, libc::SYS_preadv, libc::SYS_process_mrelease, libc::SYS_pselect6,
    libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_read, libc::SYS_readahead,
    libc::SYS_readlinkat, libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmmsg,
    libc::SYS_recvmsg, libc::SYS_remap_file_pages, libc::SYS_removexattr, libc::SYS_renameat,
    libc::SYS_renameat2, libc::SYS_restart_syscall, libc::SYS_rseq, libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo, libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity, libc::SYS_sched_getattr, libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler, libc::SYS_sched_rr_get_interval, libc::SYS_sched_setaffinity,
    libc::SYS_sched_setparam, libc::SYS_sched_setscheduler, libc::SYS_sched_yield,
    libc::SYS_seccomp, libc::SYS_semctl, libc::SYS_semget, libc::SYS_semop, libc::SYS_semtimedop,
    libc::SYS_sendfile, libc::SYS_sendmmsg, libc::SYS_sendmsg, libc::SYS_sendto,
    libc::SYS_set_robust_list, libc::SYS_set_tid_address, libc::SYS_setfsgid, libc::SYS_setfsuid,
    libc::SYS_setgid, libc::SYS_setgroups, libc::SYS_setitimer, libc::SYS_setpgid,
    libc::SYS_setpriority, libc::SYS_setregid, libc::SYS_setresgid, libc::SYS_setresuid,
    libc::SYS_setreuid, libc::SYS_setsid, libc::SYS_setsockopt, libc::SYS_setuid,
    libc::SYS_setxattr, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt, libc::SYS_shutdown,
    libc::SYS_sigaltstack, libc::SYS_signalfd4, libc::SYS_socketpair, libc::SYS_splice,
    libc::SYS_statfs, libc::SYS_statx, libc::SYS_symlinkat, libc::SYS_sync_file_range,
    libc::SYS_sysinfo, libc::SYS_tee, libc::SYS_tgkill, libc::SYS_timer_create,
    libc::SYS_timer_delete, libc::SYS_timer_getoverrun, libc::SYS_timer_gettime,
    libc::SYS_timer_settime, libc::SYS_timerfd_create, libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime, libc::SYS_times, libc::SYS_tkill, libc::SYS_truncate,
    libc::SYS_umask, libc::SYS_uname, libc::SYS_unlinkat, libc::SYS_utimensat, libc::SYS_vmsplice,
    libc::SYS_wait4, libc::SYS_waitid, libc::SYS_write, libc::SYS_writev,
];

/// Older forms that newer architectures never had.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OF_THIS_ARCHITECTURE: &[c_long] = &[
    libc::SYS_access, libc::SYS_alarm, libc::SYS_arch_prctl, libc::SYS_chmod, libc::SYS_chown,
    libc::SYS_creat, libc::SYS_dup2, libc::SYS_epoll_create, libc::SYS_epoll_wait,
    libc::SYS_eventfd, libc::SYS_fork, libc::SYS_futimesat, libc::SYS_get_thread_area,
    libc::SYS_getdents, libc::SYS_getpgrp, libc::SYS_inotify_init, libc::SYS_lchown,
    libc::SYS_link, libc::SYS_lstat, libc::SYS_mkdir, libc::SYS_mknod, libc::SYS_modify_ldt,
    libc::SYS_open, libc::SYS_pause, libc::SYS_pipe, libc::SYS_poll, libc::SYS_readlink,
    libc::SYS_rename, libc::SYS_rmdir, libc::SYS_select, libc::SYS_set_thread_area,
    libc::SYS_signalfd, libc::SYS_stat, libc::SYS_symlink, libc::SYS_time, libc::SYS_unlink,
    libc::SYS_utime, libc::SYS_utimes, libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const OF_THIS_ARCHITECTURE: &[c_long] = &[];

/// What an init needs once its worker runs.
#[rustfmt::skip]
pub(super) const INIT: &[c_long] = &[
    libc::SYS_brk, libc::SYS_capset, libc::SYS_close, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_futex, libc::SYS_getpid, libc::SYS_getrandom, libc::SYS_kill, libc::SYS_lseek,
    libc::SYS_madvise, libc::SYS_mmap, libc::SYS_mount, libc::SYS_mount_setattr,
    libc::SYS_move_mount, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_munmap,
    libc::SYS_open_tree, libc::SYS_openat, libc::SYS_ppoll, libc::SYS_prctl, libc::SYS_prlimit64, libc::SYS_read,
    libc::SYS_recvmsg, libc::SYS_restart_syscall, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn, libc::SYS_sendmsg, libc::SYS_sigaltstack, libc::SYS_sched_yield,
    libc::SYS_wait4, libc::SYS_waitid, libc::SYS_write,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];
