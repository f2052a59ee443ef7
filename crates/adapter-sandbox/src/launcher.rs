//! The process that makes instances: single-threaded, so that it may fork, and a child of the
//! daemon, which must not.
//!
//! ```text
//! Launch ──► Starting ──► Running ──► ended ──► released
//!                └── failed ───────────┘
//! ```
//!
//! Nothing here blocks on an instance: every step of every instance is an event, and has a deadline
//! with a next step ([`Due`]). The last one is to give up: the kernel can keep a process that was
//! killed, and whoever waits for its end is then told that nobody knows it. When the daemon's end of
//! the socket closes, for whatever reason, all instances are killed and everything the launcher made
//! is removed.
//!
//! Whatever becomes a child of the launcher is collected, known or not: a PID namespace ends only
//! when the last of its processes has been collected.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use model::{InstanceId, LaunchSpec, Limits, Usage};
use rustix::{
    event::{Timespec, epoll},
    process::{Signal, WaitIdStatus, pidfd_send_signal},
    thread::UnshareFlags,
};

use crate::{
    allowance::Allowance,
    cgroup::Groups,
    fault::{Fault, Step},
    idmap::IdMaps,
    ids::{self, USERS_OF_AN_OWNER},
    launch::{Launched, Workshop},
    nameservers::Nameservers,
    network::Networks,
    owner::Owner,
    probe,
    seccomp::Filters,
    sys,
    sys::Child,
    template::{Host, Templates},
    usage,
    views::Views,
    wire::{self, Event, Order, Request, Status},
    zygote::Zygotes,
};

mod births;
mod lives;
mod reaping;
mod setup;

use births::Birth;
pub(crate) use setup::{ABSTRACT_SOCKETS, is_root};

/// The descriptor of the socket to the daemon.
const DAEMON: i32 = 3;

/// Without an event for this long nobody seems to be in a hurry, and networks may be made, each of
/// which keeps the launcher busy for about as long.
const QUIET: Duration = Duration::from_millis(1);

/// How long an instance may take to start. It takes milliseconds, and some seconds on a machine
/// that is busy with everything else.
pub(crate) const START: Duration = Duration::from_secs(30);

/// How often, and for how long, the removal of a cgroup that still has processes is tried again.
const RELEASE_AGAIN: Duration = Duration::from_millis(5);
const RELEASE_AT_LAST: Duration = Duration::from_secs(10);

/// The launcher's whole life. Its program has been started by [`crate::SandboxAdapter::start`],
/// with the socket to the daemon as descriptor 3.
pub fn launcher_main() -> ExitCode {
    let Ok(daemon) = sys::inherited(DAEMON) else {
        eprintln!("this command is for the daemon's own use");
        return ExitCode::from(64);
    };
    setup::limit_itself();
    match Launcher::start(daemon.as_fd()) {
        Ok(mut launcher) => {
            launcher.run();
            launcher.finish();
            ExitCode::SUCCESS
        }
        Err(fault) => {
            let _ = wire::send(&daemon, &Event::Failed(fault), None);
            ExitCode::FAILURE
        }
    }
}

struct Launcher<'a> {
    daemon: std::os::fd::BorrowedFd<'a>,
    epoll: OwnedFd,
    owner: Owner,
    workshop: Workshop,
    /// By slot. A slot is the instance's share of whatever is numbered.
    instances: Vec<Option<Live>>,
    slots: HashMap<InstanceId, usize>,
    /// When to look at which slot's timer.
    deadlines: BTreeSet<(Duration, usize)>,
    /// How long what was killed may take to be gone.
    end_patience: Duration,
    /// Readable when a child has ended.
    signals: OwnedFd,
    /// Those that have ended: when to release them, in this order.
    ended: VecDeque<(Duration, usize)>,
    zygotes: Zygotes,
    has_warned_of_births: bool,
    next_serial: u64,
    buffer: Vec<u8>,
}

/// An instance between its fork and its release.
struct Live {
    id: InstanceId,
    launched: Launched,
    phase: Phase,
    attaching: Attaching,
    /// Tells it from others that had its slot.
    serial: u64,
    /// Where the zygote of its worker is, if it is to have one.
    zygote: Option<usize>,
    birth: Option<Birth>,
    /// Why its worker was not forked after all.
    setback: Option<Fault>,
    /// The worker, if a zygote has forked it. Otherwise it is its init's affair.
    worker: Option<Child>,
    /// What the worker ended with.
    status: Option<Status>,
    /// Its next deadline, and what is due then.
    timer: Option<(Duration, Due)>,
    /// Whether the daemon has been told of its end, though there was none.
    is_given_up: bool,
    ended_at: Duration,
}

/// What happens at an instance's deadline.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Its worker should have been forked: it is started as a program.
    Birth,
    /// It should have started: it is killed.
    Start,
    /// It should have ended politely: it is killed.
    Stop,
    /// It was killed and should be gone: nobody waits for it any longer.
    End,
}

enum Phase {
    Starting,
    /// Its launch failed; the daemon hears of it when nothing is left.
    Failed(Fault),
    Running,
}

#[derive(PartialEq, Eq)]
enum Attaching {
    NotYet,
    /// The daemon waits for the answer to this request.
    Asked(u64),
    Done,
}

/// What an epoll event is about.
#[derive(Clone, Copy)]
enum Source {
    Daemon,
    Init(usize),
    Process(usize),
    Worker(usize),
    Channel(usize),
    Zygote(usize),
    Children,
    /// The host's own addresses.
    Uplinks,
}

impl Source {
    fn encode(self) -> epoll::EventData {
        let (kind, number) = match self {
            Self::Daemon => (0, 0),
            Self::Init(slot) => (1, slot),
            Self::Process(slot) => (2, slot),
            Self::Worker(slot) => (3, slot),
            Self::Channel(slot) => (4, slot),
            Self::Zygote(place) => (5, place),
            Self::Children => (6, 0),
            Self::Uplinks => (7, 0),
        };
        epoll::EventData::new_u64(8 * number as u64 + kind)
    }

    fn decode(data: epoll::EventData) -> Self {
        let number = usize::try_from(data.u64()).expect("encoded from a slot");
        match (number % 8, number / 8) {
            (1, slot) => Self::Init(slot),
            (2, slot) => Self::Process(slot),
            (3, slot) => Self::Worker(slot),
            (4, slot) => Self::Channel(slot),
            (5, place) => Self::Zygote(place),
            (6, _) => Self::Children,
            (7, _) => Self::Uplinks,
            _ => Self::Daemon,
        }
    }
}

impl<'a> Launcher<'a> {
    fn start(daemon: std::os::fd::BorrowedFd<'a>) -> Result<Self, Fault> {
        let mut buffer = vec![0; wire::LONGEST];
        let first = wire::receive(daemon, &mut buffer).step("hear from the daemon")?;
        let Some((Request::Start(settings), _)) = first else {
            return Err(Fault::new("understand the daemon", libc::EPROTO));
        };
        // A signal from the daemon's terminal is for the daemon, which stops the launcher in turn.
        rustix::process::setsid().step("leave the daemon's session")?;
        let owner = setup::take_ownership(&settings)?;
        let groups = Groups::find(&owner.number.to_string());
        groups.clear();
        let memory = groups.confine(setup::memory_of_machine(), settings.memory_reserve);
        let is_root = setup::is_root();
        // Not before: owners meet in the host's network.
        if settings.is_trial && is_root {
            sys::unshare(UnshareFlags::NEWNET).step("leave the host's network")?;
        }
        let allowance = if is_root {
            ids::keep_capabilities().step("keep the launcher's capabilities")?;
            // The maximum of each instance's user.
            Allowance::OWN.limit().step("set resource limits")?;
            Allowance::OWN
        } else {
            setup::become_root_of_own_namespace().step("make a user namespace")?
        };
        let place = owner.directory.join("bare");
        setup::make_directory(&place).step("make a directory")?;
        let views = Views::enter(&place).step("make a mount namespace")?;
        let roots = owner.directory.join("roots");
        setup::make_directory(&roots).step("make a directory")?;
        let nameservers = Nameservers::of_host();
        let has_overlays = probe::has_overlays();
        let workshop = Workshop {
            views,
            networks: Networks::new(&settings, owner.number, is_root, &nameservers)?,
            templates: Templates::new(roots, Host { nameservers, is_root, has_overlays }),
            groups,
            filters: Rc::new(Filters::new()),
            allowance,
            id_maps: IdMaps::default(),
            first_user: is_root.then(|| ids::first_user(owner.number)),
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).step("make an epoll instance")?;
        let signals = sys::child_signals().step("listen for signals")?;
        let launcher = Self {
            daemon,
            epoll,
            owner,
            workshop,
            instances: Vec::new(),
            slots: HashMap::new(),
            deadlines: BTreeSet::new(),
            end_patience: settings.end_patience,
            signals,
            ended: VecDeque::new(),
            zygotes: Zygotes::default(),
            has_warned_of_births: false,
            next_serial: 0,
            buffer,
        };
        launcher.listen(launcher.daemon, Source::Daemon).step("listen to the daemon")?;
        if let Some(changes) = launcher.workshop.networks.changes() {
            launcher.listen(changes, Source::Uplinks).step("listen to changes of addresses")?;
        }
        launcher.listen(&launcher.signals, Source::Children).step("listen for signals")?;
        launcher.tell(&Event::Ready(setup::abilities(&launcher.workshop, memory)));
        if launcher.workshop.networks.has_enabled_forwarding {
            let text = "the host forwards IPv4 packets from now on (net.ipv4.ip_forward)";
            launcher.tell(&Event::Notice(text.into()));
        }
        Ok(launcher)
    }

    fn listen(&self, to: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, to, source.encode(), epoll::EventFlags::IN)?)
    }

    /// A daemon that is gone is noticed where its requests are read.
    fn tell(&self, event: &Event) {
        let _ = wire::send(self.daemon, event, None);
    }

    fn run(&mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let timeout = self.timeout();
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            let mut has_child_ended = false;
            for event in &events {
                match Source::decode(event.data) {
                    Source::Daemon => {
                        if !self.serve() {
                            return;
                        }
                    }
                    Source::Init(slot) => self.hear(slot),
                    Source::Process(slot) => self.bury(slot),
                    Source::Worker(slot) => self.bury_worker(slot),
                    Source::Channel(slot) => self.hear_worker(slot),
                    Source::Zygote(place) => self.heed(place),
                    Source::Children => has_child_ended = true,
                    Source::Uplinks => self.workshop.networks.follow(),
                }
            }
            // Last: whoever has other news of a child has them first.
            if has_child_ended {
                self.collect_children();
            }
            self.do_what_is_due();
            // One at a time: removing is slow, and somebody may be waiting for a launch.
            self.release_next();
            self.tend_zygotes();
            let has_time = events.is_empty() && self.has_time();
            if self.zygotes.is_wanting(has_time) {
                self.start_zygote();
            } else if has_time {
                self.workshop.networks.refill();
            }
            for text in std::mem::take(&mut self.workshop.networks.warnings) {
                self.tell(&Event::Warning(text));
            }
        }
    }

    /// How long to wait for an event, until there is something else to do.
    fn timeout(&self) -> Option<Timespec> {
        let has_time = self.has_time();
        let is_wanting = self.workshop.networks.is_wanting() || self.zygotes.is_wanting(true);
        let next = self
            .deadlines
            .first()
            .into_iter()
            .chain(self.ended.front())
            .map(|(when, _)| *when)
            .chain(self.zygotes.next_deadline())
            .map(|when| when.saturating_sub(sys::now()))
            .chain((has_time && is_wanting).then_some(QUIET));
        let left = next.min()?;
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    /// Whether nobody waits for a launch, so that the next one may be prepared.
    fn has_time(&self) -> bool {
        let is_starting = |live: &Live| matches!(live.phase, Phase::Starting);
        !self.instances.iter().flatten().any(is_starting)
    }

    /// Serves a request. False once the daemon is gone.
    fn serve(&mut self) -> bool {
        match wire::receive(self.daemon, &mut self.buffer) {
            Ok(Some((Request::Launch(spec), output))) => self.launch(&spec, output),
            Ok(Some((Request::Attach { request, id, artifact, limits }, _))) => {
                if let Err(fault) = self.attach(request, &id, &artifact, limits) {
                    self.tell(&Event::Attached { request, result: Err(fault) });
                }
            }
            Ok(Some((Request::Measure { request, id }, _))) => {
                let result = self.measure(&id);
                self.tell(&Event::Measured { request, result });
            }
            Ok(Some((Request::Stop { id, grace_millis }, _))) => {
                self.stop(&id, Duration::from_millis(grace_millis));
            }
            Ok(Some((Request::Start(_), _))) => {}
            Ok(None) | Err(_) => return false,
        }
        true
    }

    fn launch(&mut self, spec: &LaunchSpec, output: Option<OwnedFd>) {
        let slot = self.instances.iter().position(Option::is_none).unwrap_or(self.instances.len());
        if let Err(fault) = self.try_launch(spec, output, slot) {
            self.tell(&Event::LaunchFailed { id: spec.id.clone(), fault });
        }
    }

    fn try_launch(
        &mut self,
        spec: &LaunchSpec,
        output: Option<OwnedFd>,
        slot: usize,
    ) -> Result<(), Fault> {
        let number = u32::try_from(slot).ok().filter(|slot| *slot < USERS_OF_AN_OWNER);
        let number = number.ok_or_else(|| Fault::new("find a free user", libc::EAGAIN))?;
        let zygote = self.zygotes.find(spec);
        let launched = self.workshop.launch(spec, output, number, zygote.is_some());
        while let Some(warning) = self.workshop.templates.take_warning() {
            self.tell(&Event::Warning(warning));
        }
        let launched = launched?;
        self.next_serial += 1;
        let listening = self
            .listen(&launched.socket, Source::Init(slot))
            .and_then(|()| self.listen(&launched.child.pidfd, Source::Process(slot)));
        let (phase, is_heard) = match listening.step("listen to the init") {
            Ok(()) => (Phase::Starting, true),
            Err(fault) => (Phase::Failed(fault), false),
        };
        let live = Live {
            id: spec.id.clone(),
            launched,
            phase,
            attaching: Attaching::NotYet,
            serial: self.next_serial,
            zygote,
            birth: None,
            setback: None,
            worker: None,
            status: None,
            timer: None,
            is_given_up: false,
            ended_at: Duration::ZERO,
        };
        if slot == self.instances.len() {
            self.instances.push(None);
        }
        self.instances[slot] = Some(live);
        self.slots.insert(spec.id.clone(), slot);
        self.set_timer(slot, START, Due::Start);
        if !is_heard {
            self.kill(slot);
        }
        Ok(())
    }

    fn attach(
        &mut self,
        request: u64,
        id: &InstanceId,
        artifact: &Path,
        limits: Box<Limits>,
    ) -> Result<(), Fault> {
        let slot = self.slots.get(id).copied();
        let live = slot.and_then(|slot| self.instances[slot].as_mut());
        let live = live.ok_or_else(|| Fault::new("attach to what has ended", libc::ESRCH))?;
        if live.attaching != Attaching::NotYet {
            return Err(Fault::new("attach a second time", libc::EBUSY));
        }
        let step = || format!("attach {}", artifact.display());
        let user = live.launched.user;
        let tree = self.workshop.show_artifact(artifact, user).step(step())?;
        let changed = (*limits != live.launched.limits).then_some(limits);
        if let Some(limits) = &changed {
            live.launched.group.change(&live.launched.limits, limits).step("change the limits")?;
            live.launched.limits = (**limits).clone();
        }
        wire::send(&live.launched.socket, &Order::Attach(changed), Some(tree.as_fd()))
            .step(step())?;
        live.attaching = Attaching::Asked(request);
        Ok(())
    }

    fn measure(&self, id: &InstanceId) -> Result<Usage, Fault> {
        let slot = self.slots.get(id).copied();
        let live = slot.and_then(|slot| self.instances[slot].as_ref());
        let live = live.ok_or_else(|| Fault::new("measure what has ended", libc::ESRCH))?;
        let worker = live.worker.iter().map(|worker| worker.pid);
        let roots: Vec<_> = worker.chain([live.launched.child.pid]).collect();
        Ok(usage::measure(&live.launched.group, &roots))
    }

    fn stop(&mut self, id: &InstanceId, grace: Duration) {
        let Some(slot) = self.slots.get(id).copied() else { return };
        let Some(live) = &mut self.instances[slot] else { return };
        let is_polite = matches!(live.phase, Phase::Running) && !grace.is_zero();
        if !is_polite || wire::send(&live.launched.socket, &Order::Terminate, None).is_err() {
            return self.kill(slot);
        }
        // A second stop can only make it sooner.
        let is_sooner = match live.timer {
            Some((when, Due::Stop)) => sys::now() + grace < when,
            Some((_, Due::End)) => false,
            Some((_, Due::Birth | Due::Start)) | None => true,
        };
        if is_sooner {
            self.set_timer(slot, grace, Due::Stop);
        }
    }

    /// Kills an instance, and sees to it that somebody looks whether that was enough.
    fn kill(&mut self, slot: usize) {
        let Some(live) = &self.instances[slot] else { return };
        // It fails only if there is nothing left to kill.
        let _ = pidfd_send_signal(&live.launched.child.pidfd, Signal::KILL);
        let is_awaited = matches!(live.timer, Some((_, Due::End)));
        if !is_awaited && !live.is_given_up {
            self.set_timer(slot, self.end_patience, Due::End);
        }
    }

    /// Replaces an instance's timer. Each step has one at most.
    fn set_timer(&mut self, slot: usize, after: Duration, due: Due) {
        self.clear_timer(slot);
        let Some(live) = &mut self.instances[slot] else { return };
        let when = sys::now().saturating_add(after);
        live.timer = Some((when, due));
        self.deadlines.insert((when, slot));
    }

    fn clear_timer(&mut self, slot: usize) {
        let Some(live) = &mut self.instances[slot] else { return };
        if let Some((when, _)) = live.timer.take() {
            self.deadlines.remove(&(when, slot));
        }
    }

    fn do_what_is_due(&mut self) {
        let now = sys::now();
        while let Some((when, slot)) = self.deadlines.first().copied() {
            if when > now {
                return;
            }
            self.deadlines.pop_first();
            let Some(live) = &mut self.instances[slot] else { continue };
            let Some((_, due)) = live.timer.take() else { continue };
            match due {
                Due::Birth => self.hurry_birth(slot),
                Due::Start => {
                    live.phase = Phase::Failed(Fault::new("start in time", libc::ETIMEDOUT));
                    self.kill(slot);
                }
                Due::Stop => self.kill(slot),
                Due::End => self.give_up(slot),
            }
        }
    }

    /// Ends everything.
    fn finish(mut self) {
        self.zygotes.finish();
        for live in self.instances.iter().flatten() {
            let _ = pidfd_send_signal(&live.launched.child.pidfd, Signal::KILL);
        }
        if !reaping::collect_all(&self.signals, self.end_patience) {
            let left: Vec<_> =
                self.instances.iter().flatten().filter(|live| live.is_there()).collect();
            let names: Vec<_> = left.iter().map(|live| live.id.as_str()).collect();
            let text =
                format!("killed, and do not end: {}; the kernel keeps them", names.join(", "));
            let _ = wire::send(self.daemon, &Event::Warning(text), None);
        }
        self.instances.clear();
        let Workshop { templates, groups, views, networks, .. } = self.workshop;
        networks.finish(self.owner.number);
        groups.clear();
        groups.remove();
        drop(templates);
        drop(views);
        // Last: until then the number, and all that carries it, is ours.
        drop(self.owner);
    }
}

fn status_of(ended: Option<WaitIdStatus>) -> Status {
    match ended {
        Some(ended) => match (ended.exit_status(), ended.terminating_signal()) {
            (Some(code), _) => Status::Code(code),
            (_, Some(signal)) => Status::Signal(signal),
            _ => Status::Unknown,
        },
        None => Status::Unknown,
    }
}
