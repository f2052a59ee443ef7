//! Which system calls a worker and its init may make.
//!
//! A filter is a search tree over the call's number. The kernel runs it once for every number when
//! it is installed, to remember the plain answers, so a chain of comparisons would cost more than
//! the rest of a launch; `seccompiler` makes such chains, which is why it is not used.

use libc::sock_filter;

mod calls;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// The last call this file has an opinion on. Newer ones do not exist for a worker, so that its
/// libraries take the way they would take on an older kernel.
const NEWEST: u32 = 462;

// Offsets in `seccomp_data`, whose arguments are 64 bits wide; little-endian, low half first.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    Refuse(i32),
    /// Only without namespaces.
    Clone,
    /// Unix, Internet and routing sockets only: the other families are rarely used, and so is
    /// their code in the kernel.
    Socket,
    /// Not pushing characters into a terminal.
    Ioctl,
    /// The harmless personalities only.
    Personality,
}

/// The filters of every instance.
pub(crate) struct Filters {
    pub(crate) worker: Vec<sock_filter>,
    pub(crate) init: Vec<sock_filter>,
}

impl Filters {
    pub(crate) fn new() -> Self {
        Self { worker: compile(worker_answer), init: compile(init_answer) }
    }
}

fn worker_answer(call: libc::c_long) -> Answer {
    match call {
        libc::SYS_clone => Answer::Clone,
        libc::SYS_socket => Answer::Socket,
        libc::SYS_ioctl => Answer::Ioctl,
        libc::SYS_personality => Answer::Personality,
        // Its flags are in memory, where no filter can see them; the C libraries fall back to clone.
        libc::SYS_clone3 => Answer::Refuse(libc::ENOSYS),
        call if calls::is_for_workers(call) => Answer::Allow,
        _ => Answer::Refuse(libc::EPERM),
    }
}

fn init_answer(call: libc::c_long) -> Answer {
    if calls::INIT.contains(&call) { Answer::Allow } else { Answer::Refuse(libc::EPERM) }
}

fn compile(answer: impl Fn(libc::c_long) -> Answer) -> Vec<sock_filter> {
    let mut runs: Vec<(u32, Answer)> = Vec::new();
    let known = (0..=NEWEST).map(|call| (call, answer(libc::c_long::from(call))));
    for (call, answer) in known.chain([(NEWEST + 1, Answer::Refuse(libc::ENOSYS))]) {
        if runs.last().is_none_or(|(_, last)| *last != answer) {
            runs.push((call, answer));
        }
    }
    let mut program = vec![
        load(ARCH),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    program.extend(search(&runs));
    program
}

/// The tree over runs of equal answers, each given with its first number.
fn search(runs: &[(u32, Answer)]) -> Vec<sock_filter> {
    if let [(_, answer)] = runs {
        return answer.code();
    }
    let (lower, upper) = runs.split_at(runs.len() / 2);
    let (below, above) = (search(lower), search(upper));
    let pivot = upper[0].0;
    let mut code = match u8::try_from(below.len()) {
        Ok(length) => vec![jump(libc::BPF_JGE, pivot, length, 0)],
        Err(_) => vec![jump(libc::BPF_JGE, pivot, 0, 1), skip(below.len())],
    };
    code.extend(below);
    code.extend(above);
    code
}

impl Answer {
    fn code(self) -> Vec<sock_filter> {
        let allow = give(libc::SECCOMP_RET_ALLOW);
        let refuse = |errno: i32| give(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned());
        match self {
            Self::Allow => vec![allow],
            Self::Refuse(errno) => vec![refuse(errno)],
            Self::Clone => vec![
                load(argument(0)),
                jump(libc::BPF_JSET, NAMESPACES, 0, 1),
                refuse(libc::EPERM),
                allow,
            ],
            Self::Socket => vec![
                load(argument(0)),
                equals(libc::AF_UNIX, 6, 0),
                equals(libc::AF_INET, 5, 0),
                equals(libc::AF_INET6, 4, 0),
                equals(libc::AF_NETLINK, 0, 2),
                load(argument(2)),
                equals(libc::NETLINK_ROUTE, 1, 0),
                refuse(libc::EAFNOSUPPORT),
                allow,
            ],
            Self::Ioctl => vec![
                load(argument(1)),
                jump(libc::BPF_JEQ, 0x5412, 1, 0), // TIOCSTI
                jump(libc::BPF_JEQ, 0x541C, 0, 1), // TIOCLINUX
                refuse(libc::EPERM),
                allow,
            ],
            Self::Personality => vec![
                load(argument(0)),
                jump(libc::BPF_JEQ, 0xFFFF_FFFF, 3, 0), // asks only
                // ADDR_NO_RANDOMIZE would weaken the worker; PER_LINUX32 and UNAME26 do no harm.
                jump(libc::BPF_JEQ, 0, 2, 0),
                jump(libc::BPF_JEQ, 0x0008, 1, 0),
                jump(libc::BPF_JEQ, 0x0002_0000, 0, 1),
                allow,
                refuse(libc::EPERM),
            ],
        }
    }
}

fn code(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("operations are small"), jt, jf, k }
}

fn load(offset: u32) -> sock_filter {
    code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn jump(condition: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    code(libc::BPF_JMP | condition | libc::BPF_K, then, otherwise, value)
}

fn equals(value: i32, then: u8, otherwise: u8) -> sock_filter {
    jump(libc::BPF_JEQ, value.cast_unsigned(), then, otherwise)
}

fn skip(instructions: usize) -> sock_filter {
    let length = u32::try_from(instructions).expect("a filter is short");
    code(libc::BPF_JMP | libc::BPF_JA, 0, 0, length)
}

fn give(answer: u32) -> sock_filter {
    code(libc::BPF_RET | libc::BPF_K, 0, 0, answer)
}

#[cfg(test)]
mod tests;
