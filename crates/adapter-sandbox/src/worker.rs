//! The function's process, from its fork to its own program.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use libc::sock_filter;
use model::{LaunchSpec, Limits, Network, paths};
use rustix::{
    fs::Mode,
    process::{Pid, Resource, Rlimit},
    thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets},
};
use serde::Serialize;

use crate::{
    fault::{Fault, Step},
    init::USER,
    sys,
};

/// The namespaces of an instance that a forked worker enters by itself: all but that of its id.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// The size of core dumps with which there is none, not even to a program that the host runs as root:
/// one that gets dumps through a pipe (`core_pattern`) runs with every limit but this, 0 among them.
pub(crate) const NO_CORE: u64 = 1;

/// What a worker must know that a zygote has forked.
#[derive(Serialize)]
pub(crate) struct Details<'a> {
    namespaces: i32,
    user: u32,
    directory: &'static str,
    environment: Vec<&'a str>,
    resources: BTreeMap<&'static str, u64>,
    /// In hexadecimal digits.
    filter: String,
    has_output: bool,
}

/// A worker that is about to be started.
pub(crate) struct Worker {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    pub(crate) output: Option<OwnedFd>,
    limits: Limits,
    /// Whether cgroups keep the limits. Where they do not, each process is limited by itself.
    pub(crate) has_groups: bool,
    shares_host_network: bool,
}

impl Worker {
    /// Checks what a specification says about the process.
    pub(crate) fn new(spec: &LaunchSpec, output: Option<OwnedFd>) -> Result<Self, Fault> {
        let text = |text: String| CString::new(text).step("use a text with a zero byte in it");
        let argument = |argument: &String| text(argument.replace("{server}", paths::SERVER));
        let arguments: Vec<_> = spec.command.iter().map(argument).collect::<Result<_, _>>()?;
        let program = arguments
            .first()
            .ok_or_else(|| Fault::new("run a command without a program", libc::EINVAL))?
            .clone();
        let variables =
            spec.environment.iter().map(|(name, value)| text(format!("{name}={value}")));
        let socket = spec.socket.iter().map(|socket| {
            let name = socket.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            text(format!("{}=/run/hearth/{name}", socket.variable))
        });
        Ok(Self {
            program,
            environment: variables.chain(socket).collect::<Result<_, _>>()?,
            arguments,
            output,
            limits: spec.limits.clone(),
            has_groups: true,
            shares_host_network: spec.network == Network::Host,
        })
    }

    /// What a worker must know that a zygote forks, and the descriptors that go with it.
    pub(crate) fn details(
        &self,
        filter: &[sock_filter],
    ) -> Result<(Details<'_>, Vec<OwnedFd>), Fault> {
        let landlock = self.shares_host_network.then(abstract_sockets).transpose();
        let landlock = landlock.step("set up Landlock")?.flatten();
        let output = self.output.as_ref().map(OwnedFd::try_clone).transpose();
        let output = output.step("duplicate the output")?;
        let details = Details {
            namespaces: NAMESPACES | if self.shares_host_network { 0 } else { libc::CLONE_NEWNET },
            user: USER,
            directory: paths::SERVER,
            environment: self.environment.iter().filter_map(|text| text.to_str().ok()).collect(),
            resources: self.resources().into_iter().map(|(_, name, limit)| (name, limit)).collect(),
            filter: hex(filter),
            has_output: output.is_some(),
        };
        Ok((details, output.into_iter().chain(landlock).collect()))
    }

    /// Forks, and returns once the program runs.
    pub(crate) fn start(&self, filter: &[sock_filter]) -> Result<Pid, Fault> {
        let (mut reader, writer) = io::pipe().step("make a pipe")?;
        let Some(child) = sys::clone3(0, None).step("fork the worker")? else {
            drop(reader);
            let Err(fault) = self.execute(filter);
            let text = serde_json::to_vec(&fault).unwrap_or_default();
            let _ = rustix::io::write(&writer, &text);
            sys::exit(127)
        };
        drop(writer);
        let mut failure = Vec::new();
        reader.read_to_end(&mut failure).step("hear from the worker")?;
        match serde_json::from_slice(&failure) {
            Ok(fault) => Err(fault),
            // The program has replaced the writer, or the worker was killed before it could say a
            // word; then it is an exit like any other.
            Err(_) => Ok(child.pid),
        }
    }

    fn execute(&self, filter: &[sock_filter]) -> Result<std::convert::Infallible, Fault> {
        rustix::process::setsid().step("lead a session")?;
        self.open_standard().step("open the standard streams")?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        rustix::process::chdir(paths::SERVER).step("enter the runtime's directory")?;
        self.limit().step("set resource limits")?;
        drop_capabilities().step("drop capabilities")?;
        rustix::thread::set_no_new_privs(true).step("renounce new privileges")?;
        if self.shares_host_network {
            keep_from_abstract_sockets().step("set up Landlock")?;
        }
        sys::reset_signals();
        sys::inherit_only_below(3);
        sys::install_filter(filter).step("install the system call filter")?;
        Err(self.replace()).step(format!("run {}", self.program.to_string_lossy()))
    }

    fn replace(&self) -> io::Error {
        let program: &CStr = &self.program;
        sys::execute(program, &self.arguments, &self.environment)
    }

    fn open_standard(&self) -> io::Result<()> {
        let null = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open("/dev/null")?;
        let output = self.output.as_ref().map_or(null.as_fd(), AsFd::as_fd);
        // The output may itself have a standard number, so it is duplicated before it is covered.
        sys::duplicate_to(output, 1)?;
        sys::duplicate_to(output, 2)?;
        sys::duplicate_to(null.as_fd(), 0)
    }

    /// Gives a worker that runs other limits, as far as they are kept for each process by itself.
    pub(crate) fn relimit(&self, worker: Pid, limits: &Limits) -> io::Result<()> {
        let old = &self.limits;
        relimit(worker, Resource::Nofile, old.open_files, limits.open_files)?;
        if !self.has_groups {
            relimit(worker, Resource::Data, data_bytes(old), data_bytes(limits))?;
            relimit(worker, Resource::Nproc, old.pids.into(), limits.pids.into())?;
        }
        Ok(())
    }

    fn limit(&self) -> io::Result<()> {
        self.resources().into_iter().try_for_each(|(resource, _, limit)| lower(resource, limit))
    }

    /// The limits of each process by itself, with the names that programs know them by.
    fn resources(&self) -> Vec<(Resource, &'static str, u64)> {
        let mut resources = vec![
            (Resource::Core, "RLIMIT_CORE", NO_CORE),
            (Resource::Nofile, "RLIMIT_NOFILE", self.limits.open_files),
        ];
        if !self.has_groups {
            resources.push((Resource::Data, "RLIMIT_DATA", data_bytes(&self.limits)));
            resources.push((Resource::Nproc, "RLIMIT_NPROC", self.limits.pids.into()));
        }
        resources
    }
}

/// What stands in for a limit of memory where no group keeps one. It counts what a process may write
/// to, used or not, and engines set much of that aside (V8 some 40 MiB), so there is room for it
/// beside what the function was promised.
fn data_bytes(limits: &Limits) -> u64 {
    const SET_ASIDE: u64 = 64 << 20;
    limits.memory_bytes.saturating_add(SET_ASIDE)
}

/// Never above what it has already: only the host's root may raise what a process was started with.
fn relimit(worker: Pid, resource: Resource, old: u64, new: u64) -> io::Result<()> {
    use rustix::io::Errno;
    if old == new {
        return Ok(());
    }
    let limit = Rlimit { current: Some(new), maximum: Some(new) };
    match rustix::process::prlimit(Some(worker), resource, limit) {
        // It may have ended just now, which is reported by itself.
        Ok(_) | Err(Errno::PERM | Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Never above what the launcher has itself.
pub(crate) fn lower(resource: Resource, limit: u64) -> io::Result<()> {
    let highest = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let limit = Some(limit.min(highest));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit })?)
}

fn drop_capabilities() -> io::Result<()> {
    use rustix::thread;
    type Bits = CapabilitiesSecureBits;
    thread::set_capabilities_secure_bits(
        Bits::NO_ROOT
            | Bits::NO_ROOT_LOCKED
            | Bits::NO_SETUID_FIXUP
            | Bits::NO_SETUID_FIXUP_LOCKED
            | Bits::KEEP_CAPS_LOCKED
            | Bits::NO_CAP_AMBIENT_RAISE
            | Bits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    drop_from_bounding_set(CapabilitySet::from_bits_retain(u64::MAX))?;
    thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(thread::set_capabilities(None, sets)?)
}

/// What is dropped no program of this process or its children will have.
pub(crate) fn drop_from_bounding_set(dropped: CapabilitySet) -> io::Result<()> {
    for bit in (0..64).map(|number| 1 << number).filter(|bit| dropped.bits() & bit != 0) {
        let one = CapabilitySet::from_bits_retain(bit);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // Numbers beyond what this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// The host's abstract sockets have no file whose owner could refuse. Kernels before 6.12 cannot
/// do this, which `weaknesses` says.
fn keep_from_abstract_sockets() -> io::Result<()> {
    ruleset()?.restrict_self().map(drop).map_err(io::Error::other)
}

/// The same as a descriptor for whoever is to be restricted. None where the kernel cannot.
fn abstract_sockets() -> io::Result<Option<OwnedFd>> {
    Ok(ruleset()?.into())
}

fn ruleset() -> io::Result<landlock::RulesetCreated> {
    use landlock::{Ruleset, RulesetAttr, Scope};
    let ruleset = Ruleset::default().scope(Scope::AbstractUnixSocket);
    ruleset.and_then(Ruleset::create).map_err(io::Error::other)
}

/// The filter's instructions as they are in memory.
fn hex(filter: &[sock_filter]) -> String {
    let bytes = filter.iter().flat_map(|instruction| {
        let sock_filter { code, jt, jf, k } = *instruction;
        code.to_ne_bytes().into_iter().chain([jt, jf]).chain(k.to_ne_bytes())
    });
    bytes.fold(String::with_capacity(filter.len() * 16), |text, byte| text + &format!("{byte:02x}"))
}
