//! Processes that have loaded what the workers of a runtime need, and fork them.
//!
//! ```text
//! Wanted ──► Starting ──► Ready ──► (ended after a while without use)
//!    ▲           └───────────┴──► Resting: it failed, and is wanted again later
//!    └──────────────────────────────┘
//! ```
//!
//! A zygote never sees anything of an instance but descriptors; a worker that it has forked is a
//! child of the launcher, learns from the launcher what it is to be, and enters by itself
//! (`launcher::births`). So a zygote that ends takes nothing with it, and what it would have forked
//! is started as a program.

use std::{
    collections::VecDeque,
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use model::{LaunchSpec, paths};
use rustix::{
    process::{Pid, Resource, Signal, pidfd_send_signal},
    thread::CapabilitySet,
};

use crate::{
    allowance::Allowance,
    fault::{Fault, Step},
    init::enter,
    launch::Workshop,
    priority,
    root::Root,
    sys::{self, Child},
    template::Key,
    wire,
    worker::{self, NO_CORE, drop_from_bounding_set},
};

/// The most on one host: each has the memory of an interpreter.
const MOST: usize = 16;

/// The most forks that one may have waiting. What comes then is started as a program.
const MOST_ASKED: usize = 64;

/// One that is wanted is started when there is time, and at last after so long.
const AT_LAST: Duration = Duration::from_millis(20);

/// One that nobody needed for this long ends.
const IDLE: Duration = Duration::from_secs(300);

/// One that has not become ready by then never will.
const START: Duration = Duration::from_secs(30);

/// How long one that failed rests: doubled with every failure, up to the second.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// The zygotes of a host. Each keeps its place for as long as the launcher lives.
#[derive(Default)]
pub(crate) struct Zygotes {
    places: Vec<Zygote>,
}

struct Zygote {
    template: Key,
    spec: LaunchSpec,
    state: State,
    used_at: Duration,
    failures: u32,
}

enum State {
    Wanted { at: Duration },
    Running(Process),
    Resting { until: Duration },
}

/// Who is waiting for a fork: the instance's slot, and its number to tell it from earlier ones.
pub(crate) type Asker = (usize, u64);

/// A zygote that runs.
pub(crate) struct Process {
    pub(crate) socket: OwnedFd,
    child: Child,
    started_at: Duration,
    is_ready: bool,
    asked: VecDeque<Asker>,
}

impl Zygotes {
    /// The place of a zygote that can fork now. If there is none, one is wanted from now on.
    pub(crate) fn find(&mut self, spec: &LaunchSpec) -> Option<usize> {
        spec.zygote.as_ref()?;
        let template = Key::of(spec).ok()?;
        let now = sys::now();
        let is_it =
            |zygote: &Zygote| zygote.spec.zygote == spec.zygote && zygote.template == template;
        let Some(place) = self.places.iter().position(is_it) else {
            self.add(template, spec, now);
            return None;
        };
        let zygote = &mut self.places[place];
        zygote.used_at = now;
        match &zygote.state {
            State::Running(process) if process.can_fork() => return Some(place),
            State::Resting { until } if *until <= now => {
                zygote.state = State::Wanted { at: now };
            }
            _ => {}
        }
        None
    }

    fn add(&mut self, template: Key, spec: &LaunchSpec, now: Duration) {
        let zygote = Zygote {
            template,
            spec: spec.clone(),
            state: State::Wanted { at: now },
            used_at: now,
            failures: 0,
        };
        if self.places.len() < MOST {
            return self.places.push(zygote);
        }
        // One that runs keeps its place until it has ended for want of use.
        let not_running = |place: &&mut Zygote| !matches!(place.state, State::Running(_));
        let free = self.places.iter_mut().filter(not_running).min_by_key(|place| place.used_at);
        if let Some(free) = free {
            *free = zygote;
        }
    }

    /// Whether to start one: soon if there is time for it, otherwise a little later.
    pub(crate) fn is_wanting(&self, has_time: bool) -> bool {
        let since = sys::now().saturating_sub(if has_time { Duration::ZERO } else { AT_LAST });
        let is_due = |zygote: &Zygote| matches!(zygote.state, State::Wanted { at } if at <= since);
        self.places.iter().any(is_due)
    }

    /// Starts one that is wanted: its place, or why it could not be started.
    pub(crate) fn start_next(&mut self, workshop: &mut Workshop) -> Option<Result<usize, Fault>> {
        let is_wanted = |zygote: &Zygote| matches!(zygote.state, State::Wanted { .. });
        let place = self.places.iter().position(is_wanted)?;
        match Process::start(workshop, &self.places[place].spec) {
            Ok(process) => {
                self.places[place].state = State::Running(process);
                Some(Ok(place))
            }
            Err(fault) => {
                self.places[place].rest();
                Some(Err(fault))
            }
        }
    }

    /// The place of the zygote that is this process.
    pub(crate) fn place_of(&self, pid: Pid) -> Option<usize> {
        self.places.iter().position(
            |zygote| matches!(&zygote.state, State::Running(process) if process.child.pid == pid),
        )
    }

    pub(crate) fn running(&mut self, place: usize) -> Option<&mut Process> {
        match &mut self.places.get_mut(place)?.state {
            State::Running(process) => Some(process),
            State::Wanted { .. } | State::Resting { .. } => None,
        }
    }

    /// It can fork from now on.
    pub(crate) fn set_ready(&mut self, place: usize) {
        if let Some(process) = self.running(place) {
            process.is_ready = true;
        }
    }

    /// Ends one that has failed. Returns it, unless it has been ended before, and whether this is
    /// its first failure.
    pub(crate) fn fail(&mut self, place: usize) -> Option<(Process, bool)> {
        let zygote = self.places.get_mut(place)?;
        if !matches!(zygote.state, State::Running(_)) {
            return None;
        }
        match zygote.rest() {
            State::Running(process) => Some((process, zygote.failures == 1)),
            State::Wanted { .. } | State::Resting { .. } => None,
        }
    }

    /// When to look for overdue ones.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.places.iter().filter_map(Zygote::deadline).min()
    }

    /// The place of one that did not start in time.
    pub(crate) fn stuck(&self, now: Duration) -> Option<usize> {
        self.overdue(now, |process| !process.is_ready)
    }

    /// Takes one that nobody needs any more.
    pub(crate) fn take_idle(&mut self, now: Duration) -> Option<Process> {
        let place = self.overdue(now, |process| process.is_ready && process.asked.is_empty())?;
        let rested = State::Resting { until: now };
        match std::mem::replace(&mut self.places[place].state, rested) {
            State::Running(process) => Some(process),
            State::Wanted { .. } | State::Resting { .. } => None,
        }
    }

    fn overdue(&self, now: Duration, is_wanted: impl Fn(&Process) -> bool) -> Option<usize> {
        self.places.iter().position(|zygote| {
            let is_due = zygote.deadline().is_some_and(|deadline| deadline <= now);
            is_due && matches!(&zygote.state, State::Running(process) if is_wanted(process))
        })
    }

    /// Kills all.
    pub(crate) fn finish(&mut self) {
        for zygote in std::mem::take(&mut self.places) {
            if let State::Running(process) = zygote.state {
                process.end();
            }
        }
    }
}

impl Zygote {
    fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Running(process) if process.is_ready => Some(self.used_at + IDLE),
            State::Running(process) => Some(process.started_at + START),
            State::Wanted { at } => Some(*at + AT_LAST),
            State::Resting { .. } => None,
        }
    }

    /// Gives it time to become possible. Returns what it was.
    fn rest(&mut self) -> State {
        let now = sys::now();
        // One that has worked for long is not one that fails again and again.
        if let State::Running(process) = &self.state
            && process.started_at + LONGEST_REST < now
        {
            self.failures = 0;
        }
        let rest = REST.saturating_mul(1 << self.failures.min(16)).min(LONGEST_REST);
        self.failures += 1;
        std::mem::replace(&mut self.state, State::Resting { until: now + rest })
    }
}

impl Process {
    fn start(workshop: &mut Workshop, spec: &LaunchSpec) -> Result<Self, Fault> {
        let command = spec.zygote.iter().flatten();
        let arguments = command
            .map(|word| CString::new(word.replace("{server}", paths::SERVER)))
            .collect::<Result<Vec<_>, _>>()
            .step("use a text with a zero byte in it")?;
        let root = workshop.templates.root(spec)?;
        let (ours, theirs) = wire::pair().step("make a socket for a zygote")?;
        let has_weight = workshop.groups.have_weight();
        let fork = || match sys::clone3(libc::CLONE_NEWNS, None)? {
            Some(child) => Ok(child),
            None => {
                let allowance = &workshop.allowance;
                let Err(fault) = become_zygote(&root, &theirs, &arguments, allowance, has_weight);
                eprintln!("hearth: a zygote: {fault}");
                sys::exit(127)
            }
        };
        let child: std::io::Result<Child> = workshop.views.apart(fork).step("fork a zygote")?;
        Ok(Self {
            socket: ours,
            child: child.step("fork a zygote")?,
            started_at: sys::now(),
            is_ready: false,
            asked: VecDeque::new(),
        })
    }

    fn can_fork(&self) -> bool {
        self.is_ready && self.asked.len() < MOST_ASKED
    }

    /// Asks for a fork into the PID namespace of an init and into groups.
    pub(crate) fn ask(
        &mut self,
        asker: Asker,
        (init, channel): (BorrowedFd<'_>, BorrowedFd<'_>),
        group: Option<&OwnedFd>,
        groups: &[OwnedFd],
    ) -> Result<(), Fault> {
        let descriptors: Vec<_> = [init, channel]
            .into_iter()
            .chain(group.map(AsFd::as_fd))
            .chain(groups.iter().map(AsFd::as_fd))
            .collect();
        let request = wire::encode(&group.is_some()).step("ask a zygote")?;
        wire::send_bytes(&self.socket, &request, &descriptors).step("ask a zygote")?;
        self.asked.push_back(asker);
        Ok(())
    }

    /// Whom its next answer is for.
    pub(crate) fn answered(&mut self) -> Option<Asker> {
        self.asked.pop_front()
    }

    /// Kills it, and every child of it that has not become somebody's worker. All are the launcher's
    /// children, which collects them. Returns who still waited for an answer.
    pub(crate) fn end(self) -> VecDeque<Asker> {
        let pid = self.child.pid;
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        // Once this is sent none of the group can make another child. If it has not got a group of
        // its own yet, there are no children either.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        self.asked
    }
}

/// The child's part: the launcher's rights, but only over namespaces, and the template's view.
fn become_zygote(
    root: &Root,
    socket: &OwnedFd,
    arguments: &[CString],
    allowance: &Allowance,
    has_weight: bool,
) -> Result<std::convert::Infallible, Fault> {
    let program = arguments.first().ok_or_else(|| Fault::new("run no program", libc::EINVAL))?;
    rustix::process::setsid().step("lead a session")?;
    // A launcher that ended earlier has closed the socket, which a zygote takes as its end.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("tie itself to the launcher")?;
    // Whom it forks is where it is.
    priority::step_back(has_weight).step("step back behind the host")?;
    // What a worker has from its zygote it may watch and lock: not the host's inodes either.
    enter(&root.assemble()?).step("enter the root")?;
    allowance.limit().step("set resource limits")?;
    worker::lower(Resource::Core, NO_CORE).step("set resource limits")?;
    // What it takes to enter the namespaces of an init that another user owns: to be allowed to look
    // at it, and to change one's root.
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE | CapabilitySet::SYS_CHROOT;
    let others = CapabilitySet::from_bits_retain(!needed.bits());
    drop_from_bounding_set(others).step("drop capabilities")?;
    rustix::thread::set_no_new_privs(true).step("renounce new privileges")?;
    sys::reset_signals();
    sys::duplicate_to(socket.as_fd(), 3).step("pass on the socket")?;
    sys::inherit_only_below(4);
    Err(sys::execute(program, arguments, &[])).step(format!("run {}", program.to_string_lossy()))
}
