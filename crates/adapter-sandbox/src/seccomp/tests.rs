use super::*;

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

fn refused(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

/// Runs a filter as the kernel would.
fn run(program: &[sock_filter], arch: u32, call: u32, arguments: [u32; 3]) -> u32 {
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
                    offset => arguments[(offset as usize - 16) / 8],
                }
            }
            libc::BPF_JMP if operation & 0xF0 == libc::BPF_JA => at += instruction.k as usize,
            libc::BPF_JMP => at += usize::from(if taken { instruction.jt } else { instruction.jf }),
            _ => return instruction.k,
        }
    }
}

fn worker(call: libc::c_long, arguments: [u32; 3]) -> u32 {
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
            _ => continue,
        };
        assert_eq!(run(&program, ARCHITECTURE, call, [0; 3]), expected, "call {call}");
    }
    for unknown in [NEWEST + 1, 0x4000_0000, u32::MAX] {
        assert_eq!(run(&program, ARCHITECTURE, unknown, [0; 3]), refused(libc::ENOSYS));
    }
    assert_eq!(run(&program, 0x4000_0003, 1, [0; 3]), libc::SECCOMP_RET_KILL_PROCESS);
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
        assert_eq!(worker(call, [0; 3]), refused(libc::EPERM), "call {call}");
    }
}

#[test]
fn arguments_decide_where_the_number_does_not() {
    let (unix, netlink) = (libc::AF_UNIX.cast_unsigned(), libc::AF_NETLINK.cast_unsigned());
    let (vsock, packet) = (libc::AF_VSOCK.cast_unsigned(), libc::AF_PACKET.cast_unsigned());
    let user = libc::CLONE_NEWUSER.cast_unsigned();
    for (call, arguments, expected) in [
        (libc::SYS_clone, [libc::SIGCHLD.cast_unsigned(), 0, 0], ALLOWED),
        (libc::SYS_clone, [user, 0, 0], refused(libc::EPERM)),
        (libc::SYS_clone3, [0, 0, 0], refused(libc::ENOSYS)),
        (libc::SYS_socket, [unix, 1, 0], ALLOWED),
        (libc::SYS_socket, [libc::AF_INET.cast_unsigned(), 1, 6], ALLOWED),
        (libc::SYS_socket, [libc::AF_INET6.cast_unsigned(), 1, 6], ALLOWED),
        (libc::SYS_socket, [netlink, 3, 0], ALLOWED),
        (libc::SYS_socket, [netlink, 3, 12], refused(libc::EAFNOSUPPORT)), // netfilter
        (libc::SYS_socket, [vsock, 1, 0], refused(libc::EAFNOSUPPORT)),
        (libc::SYS_socket, [packet, 3, 0], refused(libc::EAFNOSUPPORT)),
        (libc::SYS_ioctl, [0, 0x5401, 0], ALLOWED),
        (libc::SYS_ioctl, [0, 0x5412, 0], refused(libc::EPERM)),
        (libc::SYS_ioctl, [0, 0x541C, 0], refused(libc::EPERM)),
        (libc::SYS_personality, [0xFFFF_FFFF, 0, 0], ALLOWED),
        (libc::SYS_personality, [0, 0, 0], ALLOWED),
        (libc::SYS_personality, [0x0004_0000, 0, 0], refused(libc::EPERM)),
    ] {
        assert_eq!(worker(call, arguments), expected, "call {call} with {arguments:x?}");
    }
}

#[test]
fn an_init_may_mount_but_not_execute() {
    let init = Filters::new().init;
    let run = |call| run(&init, ARCHITECTURE, u32::try_from(call).expect("small"), [0; 3]);
    assert_eq!(run(libc::SYS_move_mount), ALLOWED);
    assert_eq!(run(libc::SYS_execve), refused(libc::EPERM));
    assert_eq!(run(libc::SYS_socket), refused(libc::EPERM));
}
