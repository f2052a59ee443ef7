use super::*;

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

fn refused(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

/// Runs a filter as the kernel would.
fn run(program: &[sock_filter], arch: u32, call: u32, arguments: [u64; 6]) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let instruction = program[at];
        at += 1;
        let operation = u32::from(instruction.code);
        let taken = match operation & 0xF0 {
            libc::BPF_JEQ => accumulator == instruction.k,
            libc::BPF_JGE => accumulator >= instruction.k,
            _ => accumulator & instruction.k != 0,
        };
        match operation & 0x07 {
            libc::BPF_LD => {
                accumulator = match instruction.k {
                    NUMBER => call,
                    ARCH => arch,
                    offset => {
                        let words = arguments.map(u64::to_le_bytes).concat();
                        let at = offset as usize - 16;
                        u32::from_le_bytes(words[at..at + 4].try_into().expect("four bytes"))
                    }
                }
            }
            libc::BPF_JMP if operation & 0xF0 == libc::BPF_JA => at += instruction.k as usize,
            libc::BPF_JMP => at += usize::from(if taken { instruction.jt } else { instruction.jf }),
            _ => return instruction.k,
        }
    }
}

fn worker(call: libc::c_long, arguments: [u64; 6]) -> u32 {
    let call = u32::try_from(call).expect("a small number");
    run(&Filters::new().worker, ARCHITECTURE, call, arguments)
}

#[test]
fn every_number_gets_the_answer_of_the_table() {
    let program = Filters::new().worker;
    for call in 0..=NEWEST {
        let expected = match worker_answer(libc::c_long::from(call)) {
            Answer::Allow => ALLOWED,
            Answer::Refuse(errno) => refused(errno),
            Answer::Pretend => refused(0),
            _ => continue,
        };
        assert_eq!(run(&program, ARCHITECTURE, call, [0; 6]), expected, "call {call}");
    }
    for unknown in [NEWEST + 1, 0x4000_0000, u32::MAX] {
        assert_eq!(run(&program, ARCHITECTURE, unknown, [0; 6]), refused(libc::ENOSYS));
    }
    assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn what_reaches_the_host_is_refused() {
    for call in [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_move_mount,
        libc::SYS_ptrace,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_quotactl,
        libc::SYS_acct,
    ] {
        assert_eq!(worker(call, [0; 6]), refused(libc::EPERM), "call {call}");
    }
}

#[test]
fn what_the_kernel_has_once_for_all_is_refused() {
    for (call, errno) in [
        (libc::SYS_io_setup, libc::ENOSYS),
        (libc::SYS_io_submit, libc::ENOSYS),
        (calls::ABSENT[5], libc::ENOSYS), // io_pgetevents
        (451, libc::ENOSYS),              // cachestat
        (447, libc::EPERM),               // memfd_secret
        (libc::SYS_fanotify_init, libc::EPERM),
        (libc::SYS_fanotify_mark, libc::EPERM),
        (libc::SYS_kcmp, libc::EPERM),
        (libc::SYS_sched_setattr, libc::EPERM),
        (libc::SYS_syslog, libc::EPERM),
        (libc::SYS_io_uring_enter, libc::EPERM),
        (libc::SYS_io_uring_register, libc::EPERM),
        // Zero: as if it had been done.
        (libc::SYS_sync, 0),
        (libc::SYS_syncfs, 0),
        (libc::SYS_fsync, 0),
        (libc::SYS_fdatasync, 0),
    ] {
        assert_eq!(worker(call, [0; 6]), refused(errno), "call {call}");
    }
}

/// These three at most, and the others zero.
fn three(first: u64, second: u64, third: u64) -> [u64; 6] {
    [first, second, third, 0, 0, 0]
}

fn fourth(value: u64) -> [u64; 6] {
    [0, 0, 0, value, 0, 0]
}

fn last(value: u64) -> [u64; 6] {
    [0, 0, 0, 0, 0, value]
}

fn bits(value: i32) -> u64 {
    value.cast_unsigned().into()
}

#[test]
fn arguments_decide_where_the_number_does_not() {
    let (unix, netlink) = (bits(libc::AF_UNIX), bits(libc::AF_NETLINK));
    let (vsock, packet) = (bits(libc::AF_VSOCK), bits(libc::AF_PACKET));
    let child = bits(libc::SIGCHLD);
    let thread = bits(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND);
    let (inval, perm) = (refused(libc::EINVAL), refused(libc::EPERM));
    for (call, arguments, expected) in [
        (libc::SYS_clone, three(child, 0, 0), ALLOWED),
        (libc::SYS_clone, three(thread, 0, 0), ALLOWED),
        (libc::SYS_clone, three(bits(libc::CLONE_VFORK | libc::CLONE_VM) | child, 0, 0), ALLOWED),
        (libc::SYS_clone, three(bits(libc::CLONE_NEWUSER), 0, 0), perm),
        (libc::SYS_clone, three(bits(libc::CLONE_PARENT) | child, 0, 0), perm),
        (libc::SYS_clone, three(bits(libc::CLONE_PARENT) | thread, 0, 0), perm),
        (libc::SYS_clone3, three(0, 0, 0), refused(libc::ENOSYS)),
        (libc::SYS_socket, three(unix, 1, 0), ALLOWED),
        (libc::SYS_socket, three(bits(libc::AF_INET), 1, 6), ALLOWED),
        (libc::SYS_socket, three(bits(libc::AF_INET6), 1, 6), ALLOWED),
        (libc::SYS_socket, three(netlink, 3, 0), ALLOWED),
        (libc::SYS_socket, three(netlink, 3, 12), refused(libc::EAFNOSUPPORT)), // netfilter
        (libc::SYS_socket, three(vsock, 1, 0), refused(libc::EAFNOSUPPORT)),
        (libc::SYS_socket, three(packet, 3, 0), refused(libc::EAFNOSUPPORT)),
        (libc::SYS_ioctl, three(0, 0x5401, 0), ALLOWED),
        (libc::SYS_ioctl, three(0, 0x5412, 0), perm),
        (libc::SYS_ioctl, three(0, 0x541C, 0), perm),
        (libc::SYS_ioctl, three(0, 0x4004_9409, 0), ALLOWED), // FICLONE
        (libc::SYS_ioctl, three(0, 0x9408, 0), perm),
        (libc::SYS_ioctl, three(0, 0x8008_9418, 0), perm),
        (libc::SYS_personality, three(0xFFFF_FFFF, 0, 0), ALLOWED),
        (libc::SYS_personality, three(0, 0, 0), ALLOWED),
        (libc::SYS_personality, three(0x0004_0000, 0, 0), perm),
        // Core dumps: setting is refused, asking and other limits are not.
        (libc::SYS_setrlimit, three(4, 0x1000, 0), inval),
        (libc::SYS_setrlimit, three(7, 0x1000, 0), ALLOWED),
        (libc::SYS_prlimit64, three(0, 4, 0x1000), inval),
        (libc::SYS_prlimit64, three(0, 4, 0x7000_0000_0000), inval),
        (libc::SYS_prlimit64, three(0, 0xFFFF_FFFF_0000_0004, 0x1000), inval),
        (libc::SYS_prlimit64, three(0, 4, 0), ALLOWED),
        (libc::SYS_prlimit64, three(0, 7, 0x1000), ALLOWED),
        (libc::SYS_fcntl, three(0, bits(libc::F_SETFL), 0), ALLOWED),
        (libc::SYS_fcntl, three(0, bits(libc::F_OFD_SETLK), 0), ALLOWED),
        (libc::SYS_fcntl, three(0, bits(libc::F_DUPFD_CLOEXEC), 0), ALLOWED),
        (libc::SYS_fcntl, three(0, bits(libc::F_SETPIPE_SZ), 0), ALLOWED),
        (libc::SYS_fcntl, three(0, bits(libc::F_ADD_SEALS), 0), ALLOWED),
        (libc::SYS_fcntl, three(0, bits(libc::F_SETLEASE), 0), inval),
        (libc::SYS_fcntl, three(0, bits(libc::F_NOTIFY), 0), inval),
        (libc::SYS_fcntl, three(0, 1040, 0), inval), // F_SETDELEG
        (libc::SYS_mmap, fourth(0x22), ALLOWED),
        (libc::SYS_mmap, fourth(0x4_0022), refused(libc::ENOMEM)),
        (libc::SYS_shmget, three(0, 4096, 0o1600), ALLOWED),
        (libc::SYS_shmget, three(0, 4096, 0o5600), perm),
        (libc::SYS_memfd_create, three(0x1000, 3, 0), ALLOWED),
        (libc::SYS_memfd_create, three(0x1000, 4, 0), refused(libc::ENOSYS)),
        (libc::SYS_msync, three(0, 0, 1), ALLOWED),
        (libc::SYS_msync, three(0, 0, 4), refused(0)),
        (libc::SYS_fadvise64, fourth(2), ALLOWED),
        (libc::SYS_fadvise64, fourth(4), refused(0)),
        (libc::SYS_preadv2, last(0), ALLOWED),
        (libc::SYS_preadv2, last(8), refused(libc::EOPNOTSUPP)),
        (libc::SYS_madvise, three(0, 0, 4), ALLOWED),
        (libc::SYS_madvise, three(0, 0, 12), inval),
        (libc::SYS_prctl, three(15, 0, 0), ALLOWED),
        (libc::SYS_prctl, three(62, 0, 0), inval),
        // Private barriers are for one process; global ones interrupt all.
        (libc::SYS_membarrier, three(0, 0, 0), ALLOWED),
        (libc::SYS_membarrier, three(8, 0, 0), ALLOWED),
        (libc::SYS_membarrier, three(16, 0, 0), ALLOWED),
        (libc::SYS_membarrier, three(1, 0, 0), inval),
        (libc::SYS_membarrier, three(2, 0, 0), inval),
        (libc::SYS_membarrier, three(4, 0, 0), inval),
    ] {
        assert_eq!(worker(call, arguments), expected, "call {call} with {arguments:x?}");
    }
}

#[test]
fn an_init_may_mount_but_not_execute() {
    let init = Filters::new().init;
    let run = |call| run(&init, ARCHITECTURE, u32::try_from(call).expect("small"), [0; 6]);
    assert_eq!(run(libc::SYS_move_mount), ALLOWED);
    assert_eq!(run(libc::SYS_execve), refused(libc::EPERM));
    assert_eq!(run(libc::SYS_socket), refused(libc::EPERM));
}
