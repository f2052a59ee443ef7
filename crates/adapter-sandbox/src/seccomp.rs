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

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    Refuse(i32),
    /// Said to have succeeded, and not done.
    Pretend,
    /// Allowed, unless an argument is one of some values: then it has this answer.
    UnlessOneOf {
        argument: u32,
        values: &'static [u32],
        errno: i32,
    },
    /// Allowed, unless an argument has any of some bits: then it has this answer.
    UnlessBits {
        argument: u32,
        bits: u32,
        errno: i32,
    },
    /// Unix, Internet and routing sockets only: the other families are rarely used, and so is
    /// their code in the kernel.
    Socket,
    /// What every system has, and the harmless ones of Linux's own.
    FileControl,
    /// Everything but changes of the size of core dumps.
    Limit,
    /// The harmless personalities only.
    Personality,
}

/// The error number of a call that has only pretended to do something.
const PRETENDED: i32 = 0;

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
        libc::SYS_socket => Answer::Socket,
        libc::SYS_fcntl => Answer::FileControl,
        libc::SYS_prlimit64 => Answer::Limit,
        libc::SYS_personality => Answer::Personality,
        // Its flags are in memory, where no filter can see them; the C libraries fall back to clone.
        libc::SYS_clone3 => Answer::Refuse(libc::ENOSYS),
        call => calls::by_argument(call).unwrap_or_else(|| by_number(call)),
    }
}

fn by_number(call: libc::c_long) -> Answer {
    match call {
        call if calls::PRETENDED.contains(&call) => Answer::Pretend,
        call if calls::ABSENT.contains(&call) => Answer::Refuse(libc::ENOSYS),
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
            Self::Pretend => vec![refuse(PRETENDED)],
            Self::UnlessOneOf { argument: index, values, errno } => {
                let mut code = vec![load(argument(index))];
                let count = u8::try_from(values.len()).expect("a short list");
                code.extend(
                    (0..count)
                        .map(|at| jump(libc::BPF_JEQ, values[usize::from(at)], count - at, 0)),
                );
                code.extend([allow, refuse(errno)]);
                code
            }
            Self::UnlessBits { argument: index, bits, errno } => {
                vec![load(argument(index)), jump(libc::BPF_JSET, bits, 0, 1), refuse(errno), allow]
            }
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
            Self::FileControl => {
                let count = u8::try_from(calls::OWN_FILE_CONTROL.len()).expect("a short list");
                let mut code = vec![
                    load(argument(1)),
                    jump(libc::BPF_JGE, calls::FIRST_OWN_FILE_CONTROL, 0, count + 1),
                ];
                code.extend((0..count).map(|at| {
                    jump(libc::BPF_JEQ, calls::OWN_FILE_CONTROL[usize::from(at)], count - at, 0)
                }));
                code.extend([refuse(libc::EINVAL), allow]);
                code
            }
            Self::Limit => vec![
                load(argument(1)),
                jump(libc::BPF_JEQ, calls::RLIMIT_CORE, 0, 4),
                load(argument(2)),
                jump(libc::BPF_JEQ, 0, 0, 3),
                load(argument(2) + 4),
                jump(libc::BPF_JEQ, 0, 0, 1),
                allow,
                refuse(libc::EINVAL),
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
