//! What this machine offers to the adapter: found by trying, as far as trying leaves no traces.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::Mode,
    mount::{MountFlags, mount},
    process::{WaitId, WaitIdOptions, waitid},
};
use serde::Serialize;

use crate::{
    allowance,
    cgroup::Groups,
    firewall::Firewall,
    launcher::{ABSTRACT_SOCKETS, is_root},
    mounts::detached_copy,
    nameservers::Nameservers,
    sys::{self, Child, MountAttributes},
};

/// What was found on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// One for each capability, the more important first.
    pub findings: Vec<Finding>,
}

/// Whether the machine has something, and why that matters.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The capability.
    pub what: &'static str,
    /// Whether it is there.
    pub is_found: bool,
    /// Where it is, or what the system said.
    pub detail: String,
    /// What it guarantees.
    pub gives: &'static str,
    /// What to do where it is missing.
    pub remedy: &'static str,
}

impl Probe {
    /// Whether instances can be made at all.
    pub fn is_enough(&self) -> bool {
        self.lacking().next().is_none()
    }

    /// What is missing without which no instance can be made.
    pub fn lacking(&self) -> impl Iterator<Item = &Finding> {
        let needed = |finding: &&Finding| {
            finding.what.ends_with("namespaces")
                || matches!(finding.what, "private /proc" | "seccomp")
        };
        self.findings.iter().filter(needed).filter(|finding| !finding.is_found)
    }
}

const NAMESPACES: [(&str, i32, &str); 7] = [
    ("user namespaces", 0, "instances have no privilege on the host"),
    ("mount namespaces", libc::CLONE_NEWNS, "instances see no files of the host but programs"),
    ("pid namespaces", libc::CLONE_NEWPID, "instances see no processes of the host, and end whole"),
    ("ipc namespaces", libc::CLONE_NEWIPC, "instances share no memory or queues with the host"),
    ("uts namespaces", libc::CLONE_NEWUTS, "instances do not learn the host's name"),
    ("cgroup namespaces", libc::CLONE_NEWCGROUP, "instances do not see their place on the host"),
    ("net namespaces", libc::CLONE_NEWNET, "instances have networks of their own"),
];

const NAMESPACES_REMEDY: &str = "set user.max_user_namespaces above 0, and without root also \
    kernel.unprivileged_userns_clone=1 (Debian) or kernel.apparmor_restrict_unprivileged_userns=0 \
    (Ubuntu); in a container, run it with --privileged";

/// Tries everything. Takes some milliseconds.
pub fn probe() -> Probe {
    let mut findings = vec![root()];
    findings.extend(NAMESPACES.map(|(what, flag, gives)| {
        let tried = try_namespaces(libc::CLONE_NEWUSER | flag);
        finding(what, tried.map(|()| String::new()), gives, NAMESPACES_REMEDY)
    }));
    findings.extend(mounts());
    findings.push(counters());
    findings.push(seccomp());
    findings.extend(groups());
    findings.push(sockets());
    findings.push(landlock());
    findings.extend(network());
    Probe { findings }
}

fn finding(
    what: &'static str,
    tried: io::Result<String>,
    gives: &'static str,
    remedy: &'static str,
) -> Finding {
    let is_found = tried.is_ok();
    let detail = tried.unwrap_or_else(|error| error.to_string());
    Finding { what, is_found, detail, gives, remedy }
}

fn root() -> Finding {
    let user = rustix::process::geteuid().as_raw();
    let tried = if is_root() { Ok(String::new()) } else { Err(other(format!("user {user}"))) };
    finding(
        "root",
        tried,
        "each instance is another user of the host; networks with outbound access",
        "run as root, or do without: `serve` lists what is weaker",
    )
}

fn counters() -> Finding {
    let whose = if is_root() { "for each instance" } else { "shared: half of this user's" };
    finding(
        "limits of what is counted for users",
        allowance::can_be_written().map(|()| whose.into()),
        "an instance cannot take all inotify watches, queued signals or message queues",
        "mount /proc with a writable /proc/sys (Docker: --privileged); otherwise one instance can \
         take all inotify instances and watches of its user",
    )
}

fn seccomp() -> Finding {
    finding(
        "seccomp",
        fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").map(|text| text.trim().into()),
        "instances make only the system calls that programs need",
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

fn landlock() -> Finding {
    let version = sys::landlock_version();
    let tried = match version {
        ABSTRACT_SOCKETS.. => Ok(format!("version {version}")),
        1.. => Err(other(format!("version {version}"))),
        _ => Err(other("not there".into())),
    };
    finding(
        "landlock for abstract sockets",
        tried,
        "instances with the network `host` cannot connect to the host's abstract sockets",
        "use Linux 6.12 or later with `landlock` among its security modules, or not that network",
    )
}

fn groups() -> impl Iterator<Item = Finding> {
    Groups::survey().into_iter().map(|(controller, found)| {
        let (what, gives) = match controller {
            "memory" => ("cgroup memory", "the memory of an instance is limited as a whole"),
            "cpu" => ("cgroup cpu", "the processor time of an instance is limited"),
            _ => ("cgroup pids", "the processes of an instance are limited as a whole"),
        };
        let tried = found
            .map(|(version, place)| format!("version {version} at {}", place.display()))
            .ok_or_else(|| other("no writable place".into()));
        let remedy = "run as root, or as a systemd unit with Delegate=yes on cgroup version 2; \
            otherwise memory and processes are limited for each process by itself";
        finding(what, tried, gives, remedy)
    })
}

fn sockets() -> Finding {
    let counted = Groups::would_count_sockets();
    let tried = if counted { Ok(String::new()) } else { Err(other("not counted".into())) };
    finding(
        "cgroup memory of sockets",
        tried,
        "what an instance's sockets hold is part of its memory",
        "use cgroup version 2, or version 1 on a kernel that has memory.kmem.tcp.limit_in_bytes; \
            otherwise instances share what the kernel gives to all sockets (net.ipv4.tcp_mem, \
            net.ipv4.udp_mem)",
    )
}

fn network() -> [Finding; 3] {
    let program = Firewall::program();
    let forwarding =
        fs::read_to_string("/proc/sys/net/ipv4/ip_forward").and_then(|text| match text.trim() {
            "1" => Ok("on".to_owned()),
            _ if is_root() => Ok("off; turned on by the first `serve` or `up`".to_owned()),
            _ => Err(other("off".into())),
        });
    let servers = Nameservers::of_host().reachable;
    let names = servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    [
        finding(
            "nft",
            of_root(match program {
                Some(path) => Ok(path.display().to_string()),
                None => Err(other("not installed".into())),
            }),
            "instances reach the Internet but not the host, its networks or each other",
            "install the package nftables, and run as root; without, the network is `none` or `host`",
        ),
        finding(
            "forwarding",
            of_root(forwarding),
            "packets of instances leave the host",
            "sysctl net.ipv4.ip_forward=1, and run as root",
        ),
        finding(
            "name servers",
            of_root(if servers.is_empty() { Err(other("none".into())) } else { Ok(names) }),
            "instances with the network `egress` can look up names",
            "list an IPv4 server that is not on the loopback in /etc/resolv.conf, and run as root",
        ),
    ]
}

/// What the machine has for the network `egress` and only root can use: for others it is not there.
fn of_root(tried: io::Result<String>) -> io::Result<String> {
    match tried {
        Ok(detail) if !is_root() => Err(other(format!("{detail}, for root only"))),
        tried => tried,
    }
}

fn other(text: String) -> io::Error {
    io::Error::other(text)
}

fn try_namespaces(flags: i32) -> io::Result<()> {
    match sys::clone3(flags, None)? {
        None => sys::exit(0),
        Some(child) => wait(&child).map(drop),
    }
}

fn wait(child: &Child) -> io::Result<i32> {
    let ended = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    Ok(ended.and_then(|ended| ended.exit_status()).unwrap_or(-1))
}

/// Which of the child's attempts failed, as bits of its exit status.
mod failed {
    pub(super) const PROC: i32 = 1;
    pub(super) const TMPFS: i32 = 2;
    pub(super) const OVERLAY: i32 = 4;
}

fn mounts() -> [Finding; 4] {
    let tried = try_mounts();
    let outcome = |bit: i32| match &tried {
        Ok((status, _)) if status & bit == 0 => Ok(String::new()),
        Ok(_) => Err(other("the kernel refuses".into())),
        Err(error) => Err(other(error.to_string())),
    };
    [
        finding(
            "private /proc",
            outcome(failed::PROC),
            "instances see their own processes",
            "in a container, show the whole of /proc (Docker: --security-opt systempaths=unconfined)",
        ),
        finding(
            "private /tmp",
            outcome(failed::TMPFS),
            "instances have space of their own, with a size",
            "use Linux 5.11 or later",
        ),
        finding(
            "overlay in user namespaces",
            outcome(failed::OVERLAY),
            "functions may write next to their code, and cannot watch or lock what others open",
            "use Linux 5.11 or later with overlayfs; otherwise the code is read-only, and an \
             instance can see with inotify which of the host's programs run",
        ),
        finding(
            "idmapped mounts",
            match &tried {
                Ok((_, idmapped)) => idmapped.as_ref().map(|()| String::new()).map_err(copy),
                Err(error) => Err(copy(error)),
            },
            "functions own their code, whoever owns it on the host",
            "run as root, on Linux 5.12 or later with ext4, xfs or btrfs for the data directory",
        ),
    ]
}

/// Whether instances can have overlays: in user namespaces, also without a layer to write to.
pub(crate) fn has_overlays() -> bool {
    try_mounts().is_ok_and(|(status, _)| status & failed::OVERLAY == 0)
}

fn copy(error: &io::Error) -> io::Error {
    other(error.to_string())
}

/// Mounts in a namespace that is gone afterwards.
fn try_mounts() -> io::Result<(i32, io::Result<()>)> {
    let (go, ready) = rustix::pipe::pipe()?;
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID;
    let Some(child) = sys::clone3(flags, None)? else { sys::exit(attempt_mounts(&go)) };
    let process = Path::new("/proc").join(child.pid.as_raw_nonzero().to_string());
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let maps = fs::write(process.join("setgroups"), "deny")
        .and_then(|()| fs::write(process.join("uid_map"), format!("0 {} 1", user.as_raw())))
        .and_then(|()| fs::write(process.join("gid_map"), format!("0 {} 1", group.as_raw())));
    let idmapped = try_idmap(&process);
    rustix::io::write(&ready, b"g")?;
    let status = wait(&child)?;
    maps.map(|()| (status, idmapped))
}

fn try_idmap(process: &Path) -> io::Result<()> {
    let namespace = fs::File::open(process.join("ns/user"))?;
    let tree = detached_copy(&std::env::temp_dir())?;
    let attributes =
        MountAttributes { user_namespace: Some(namespace.as_fd()), ..MountAttributes::default() };
    sys::set_mount_attributes(tree, attributes)
}

/// The child's part: system calls only (see [`sys::clone3`]).
fn attempt_mounts(go: &OwnedFd) -> i32 {
    let mut byte = [0];
    let _ = rustix::io::read(go, &mut byte);
    let mut status = 0;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount(c"proc", c"/proc", c"proc", flags | MountFlags::RDONLY, None).is_err() {
        status |= failed::PROC;
    }
    if mount(c"probe", c"/tmp", c"tmpfs", flags, None).is_err() {
        // Without it there is no place for the rest.
        return status | failed::TMPFS | failed::OVERLAY;
    }
    let directories = [c"/tmp/upper", c"/tmp/work", c"/tmp/merged", c"/tmp/empty", c"/tmp/shown"];
    let made = directories.iter().all(|path| rustix::fs::mkdir(*path, Mode::RWXU).is_ok());
    let options = c"lowerdir=/usr,upperdir=/tmp/upper,workdir=/tmp/work,userxattr";
    let layers = c"lowerdir=/tmp/empty:/usr,userxattr";
    let has_overlays = made
        && mount(c"probe", c"/tmp/merged", c"overlay", flags, options).is_ok()
        && mount(c"probe", c"/tmp/shown", c"overlay", flags | MountFlags::RDONLY, layers).is_ok();
    if !has_overlays {
        status |= failed::OVERLAY;
    }
    status
}
