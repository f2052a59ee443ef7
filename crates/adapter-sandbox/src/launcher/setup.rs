//! What a launcher does before its first launch.

use std::{fs, io, path::Path};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, UnshareFlags},
};

use crate::{
    allowance::{self, Allowance},
    cgroup::Groups,
    fault::{Fault, Step},
    firewall,
    launch::Workshop,
    network::{self, INTERFACES},
    owner::{self, Owner},
    sys,
    wire::{Abilities, Settings},
    worker::NO_CORE,
};

/// The version of Landlock that knows abstract sockets.
pub(crate) const ABSTRACT_SOCKETS: i64 = 6;

/// What holds here, and what does not.
pub(super) fn abilities(workshop: &Workshop, memory: io::Result<Option<u64>>) -> Abilities {
    let no_egress = workshop.networks.no_egress.clone();
    let mut weaknesses = Vec::new();
    let missing = workshop.groups.missing();
    if !missing.is_empty() {
        weaknesses.push(format!(
            "no cgroups for {}: memory and processes are limited for each process by itself, \
             processor time is not, and running out of memory is not reported as such",
            missing.join(", ")
        ));
    }
    if !workshop.groups.are_sockets_counted() {
        let text = "the buffers of sockets are not counted as memory of instances: each can hold as \
            much in them as the kernel gives to all sockets of the host (control groups of version 2 \
            count them, and those of version 1 with memory.kmem.tcp.limit_in_bytes)";
        weaknesses.push(text.into());
    }
    let memory_bytes = memory.unwrap_or_else(|error| {
        weaknesses.push(format!("could not limit all instances together: {error}"));
        None
    });
    if memory_bytes.is_none() {
        let text = "nothing limits the memory of all instances together: when the host has no more, \
            the kernel ends the largest of them first";
        weaknesses.push(text.into());
    }
    if !workshop.groups.have_weight() {
        let text = "no cgroup for cpu: instances step back behind the daemon by their nice level \
            only, which does not help where the kernel groups processes by session \
            (kernel.sched_autogroup_enabled)";
        weaknesses.push(text.into());
    }
    if workshop.first_user.is_none() {
        weaknesses
            .push("not root: all instances are the same user on the host, with your groups".into());
        weaknesses.push(
            "not root: the kernel counts inotify, queued signals and message queues of all \
             instances for your user: all together may take a half, one an eighth of it; a few \
             that take it all leave the others nothing. Pages of pipes, epoll watches and \
             descriptors under way are counted together, too, and nothing divides them"
                .into(),
        );
    }
    if let Err(error) = allowance::can_be_written() {
        weaknesses.push(format!(
            "settings of a user namespace cannot be written ({error}): inotify instances and \
             watches are limited for {} only, by fs.inotify",
            if workshop.first_user.is_some() { "each instance's user" } else { "all instances" }
        ));
    }
    if !workshop.templates.are_private() {
        weaknesses.push(
            "no overlays in user namespaces (Linux 5.11 can): an instance can watch with inotify \
             which programs the host and other instances run, and lock their files"
                .into(),
        );
    } else if workshop.first_user.is_none() {
        weaknesses.push(
            "not root: devices are the host's, so that an instance can watch with inotify when \
             somebody opens /dev/null or /dev/urandom, and lock them"
                .into(),
        );
    }
    match &no_egress {
        Some(why) => weaknesses.push(format!("no egress network: {why}")),
        None if firewall::is_forwarding_dropped() => weaknesses.push(format!(
            "another firewall on this host drops forwarded packets, those of instances among them: \
             let it accept what comes from and goes to interfaces named `{INTERFACES}*` (with \
             Docker: in its chain DOCKER-USER)"
        )),
        None => {}
    }
    if is_dumped_through_a_pipe() && getrlimit(Resource::Core).maximum == Some(0) {
        weaknesses.push(
            "the limit of core dumps is 0 and cannot be made 1 without root, and the host's \
             core_pattern is a program: it runs, as root, for each crash of an instance (set \
             LimitCORE=infinity, or `ulimit -c` above 0)"
                .into(),
        );
    }
    if sys::landlock_version() < ABSTRACT_SOCKETS {
        weaknesses.push(
            "Landlock cannot scope abstract sockets (Linux 6.12 can): an instance with the \
             host's network can connect to the host's abstract sockets"
                .into(),
        );
    }
    Abilities { weaknesses, no_egress, memory_bytes }
}

/// Sets what holds for the launcher, and so for everything that begins as its copy: no core dumps
/// (they could have secrets in them), and no priority above the usual one.
pub(super) fn limit_itself() {
    for (resource, limit) in [(Resource::Core, NO_CORE), (Resource::Rtprio, 0), (Resource::Nice, 0)]
    {
        let limits = Rlimit { current: Some(limit), maximum: Some(limit) };
        // Only root may raise a maximum that is 0 already; `abilities` says what that means.
        let _ = setrlimit(resource, limits);
    }
}

fn is_dumped_through_a_pipe() -> bool {
    fs::read("/proc/sys/kernel/core_pattern").is_ok_and(|pattern| pattern.starts_with(b"|"))
}

/// Whether the launcher may do everything by itself. Root in a container often may not.
pub(crate) fn is_root() -> bool {
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::SYS_PTRACE
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::SETPCAP;
    let has = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    rustix::process::geteuid().is_root() && has
}

/// Also bounds what all instances take of what the kernel counts for the user. Returns what one of
/// them may take.
pub(super) fn become_root_of_own_namespace() -> io::Result<Allowance> {
    let of_all = Allowance::of_all();
    of_all.limit()?;
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    sys::unshare(UnshareFlags::NEWUSER)?;
    // Whoever could leave a group could see what its members are denied.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    // Where this cannot be written, `weaknesses` says so.
    let _ = of_all.write();
    Ok(of_all.of_one())
}

/// Takes the first free number, and removes what dead owners left behind.
pub(super) fn take_ownership(settings: &Settings) -> Result<Owner, Fault> {
    make_directory(&settings.state).step(format!("make {}", settings.state.display()))?;
    let mut ours = None;
    let mut refusal = io::Error::from(io::ErrorKind::ResourceBusy);
    for number in 0..owner::MOST {
        if ours.is_some() && !settings.state.join(number.to_string()).exists() {
            continue;
        }
        match Owner::take(&settings.state, number) {
            Ok(owner) if ours.is_none() => ours = Some(owner),
            Ok(dead) => {
                let groups = Groups::find(&dead.number.to_string());
                groups.clear();
                groups.remove();
                network::clear(dead.number);
            }
            Err(error) => refusal = error,
        }
    }
    ours.ok_or(refusal).step(format!("take one of {} owner numbers", owner::MOST))
}

/// In bytes.
pub(super) fn memory_of_machine() -> u64 {
    let machine = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "a word, whose size is the machine's")]
    u64::from(machine.totalram).saturating_mul(machine.mem_unit.max(1).into())
}

pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
