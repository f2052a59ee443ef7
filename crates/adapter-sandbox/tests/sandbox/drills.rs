//! Deaths that nobody prepared for, and what is left after them: nothing.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

use adapter::{Adapter, AdapterError};
use adapter_sandbox::SandboxAdapter;
use model::Network;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Test,
    lab::{Directory, Lab, Outcome, children, config, id, is_root, until},
};

pub(crate) const TESTS: &[Test] = &[
    ("nothing_is_left_of_a_killed_daemon", |lab| Box::pin(nothing_is_left_of_a_killed_daemon(lab))),
    ("the_next_start_removes_what_two_kills_left", |lab| {
        Box::pin(the_next_start_removes_what_two_kills_left(lab))
    }),
    ("two_owners_do_not_meet", |lab| Box::pin(two_owners_do_not_meet(lab))),
];

/// Those that may end otherwise for workers that are forked.
pub(crate) const OF_WORKERS: &[Test] = &[
    ("a_killed_launcher_is_noticed", |lab| Box::pin(a_killed_launcher_is_noticed(lab))),
    ("nothing_is_left_after_a_shutdown", |lab| Box::pin(nothing_is_left_after_a_shutdown(lab))),
];

/// The part of a daemon: launches something, says so, and waits to be killed.
pub(crate) fn daemon(directory: &str) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let lab = Lab::open_in(Directory::of(directory)).await.expect("an adapter");
        let egress = lab.adapter.no_egress().is_none();
        let mut pids = Vec::new();
        for (name, network) in
            [("one", Network::None), ("two", Network::Host), ("three", Network::Egress)]
        {
            let mut spec = lab.spec(&id(name), &["/bin/sleep", "1000"]);
            spec.network = if egress { network } else { Network::None };
            let instance = lab.adapter.launch(&spec, None).await.expect("launch");
            pids.extend(instance.pid);
        }
        let launcher = children(std::process::id())[0];
        println!("{launcher} {}", pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

/// A daemon that runs.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) directory: Directory,
    pub(crate) launcher: u32,
    pub(crate) instances: Vec<u32>,
    owner: String,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let directory = Directory::new();
        let mut child = Command::new("/proc/self/exe")
            .arg("__drill")
            .arg(directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("speaks");
        let mut pids = line.split_whitespace().map(|pid| pid.parse().expect("a pid"));
        let launcher = pids.next().expect("the launcher's pid");
        let owner = owners(directory.path()).pop_first().expect("one owner");
        Self { child, launcher, instances: pids.collect(), directory, owner }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Daemon {
    /// Also after a failure: what it started would keep this program's output open.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn owners(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory.join("state")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub(crate) fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("kill");
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // Whoever inherits it may take its time to collect it.
    !status.is_empty() && !status.contains("State:\tZ")
}

/// What is left of an owner on this host.
fn traces(owner: &str, directory: &Path) -> Vec<String> {
    // What only root can make carries the number of an owner that is root.
    let mut traces = if is_root() { traces_of_root(owner) } else { Vec::new() };
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let place = directory.display().to_string();
    traces.extend(mounts.lines().filter(|line| line.contains(&place)).map(Into::into));
    if directory.join("state").join(owner).exists() {
        traces.push(format!("{place}/state/{owner}"));
    }
    traces
}

fn traces_of_root(owner: &str) -> Vec<String> {
    let mut traces = Vec::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = hierarchy.path().join("hearth").join(owner);
        if group.exists() {
            traces.push(group.display().to_string());
        }
    }
    let devices = fs::read_to_string("/proc/net/dev").expect("readable");
    let prefix = format!("hth{owner}n");
    traces.extend(devices.lines().filter(|line| line.trim().starts_with(&prefix)).map(Into::into));
    if let Ok(output) = Command::new("/usr/sbin/nft").args(["list", "tables"]).output() {
        let tables = String::from_utf8_lossy(&output.stdout).into_owned();
        let table = format!("hearth_{owner}");
        traces.extend(tables.lines().filter(|line| line.ends_with(&table)).map(Into::into));
    }
    traces
}

async fn nothing_is_left_after_a_shutdown(lab: Lab) -> Outcome {
    let owner = owners(lab.directory.path()).pop_first().expect("one owner");
    let spec = lab.spec(&id("running"), &["/bin/sleep", "1000"]);
    let instance = lab.adapter.launch(&spec, None).await.expect("launch");
    assert_ne!(traces(&owner, lab.directory.path()), Vec::<String>::new(), "the test looks well");
    lab.adapter.shutdown().await;
    assert_eq!(traces(&owner, lab.directory.path()), Vec::<String>::new());
    assert!(!is_alive(instance.pid.expect("a pid")));
    let refused = lab.adapter.launch(&spec, None).await;
    assert!(matches!(refused, Err(AdapterError::Gone { .. })), "{refused:?}");
    Outcome::Passed
}

async fn nothing_is_left_of_a_killed_daemon(_: Lab) -> Outcome {
    let mut daemon = Daemon::start();
    assert!(daemon.instances.iter().all(|pid| is_alive(*pid)));
    daemon.kill();
    until("the launcher ends", || !is_alive(daemon.launcher)).await;
    assert_eq!(traces(&daemon.owner, daemon.directory.path()), Vec::<String>::new());
    assert!(!daemon.instances.iter().any(|pid| is_alive(*pid)));
    Outcome::Passed
}

async fn the_next_start_removes_what_two_kills_left(_: Lab) -> Outcome {
    let mut daemon = Daemon::start();
    // The launcher first, or it would still clean up.
    kill(daemon.launcher);
    daemon.kill();
    until("instances end", || !daemon.instances.iter().any(|pid| is_alive(*pid))).await;
    let left = traces(&daemon.owner, daemon.directory.path());
    assert_ne!(left, Vec::<String>::new(), "the drill leaves something");

    let adapter = SandboxAdapter::start(config(daemon.directory.path())).await.expect("starts");
    assert_eq!(adapter.recover().await.expect("recover"), []);
    adapter.shutdown().await;
    assert_eq!(traces(&daemon.owner, daemon.directory.path()), Vec::<String>::new());
    Outcome::Passed
}

async fn a_killed_launcher_is_noticed(lab: Lab) -> Outcome {
    let spec = lab.spec(&id("running"), &["/bin/sleep", "1000"]);
    let instance = lab.adapter.launch(&spec, None).await.expect("launch");
    let launcher = lab.launcher;
    let waiting = lab.adapter.wait(&spec.id);
    kill(launcher);
    let exit = waiting.await;
    assert!(matches!(exit, Err(AdapterError::Gone { .. })), "{exit:?}");
    let refused = lab.adapter.launch(&spec, None).await;
    assert!(matches!(refused, Err(AdapterError::Gone { .. })), "{refused:?}");
    let stopped = lab.adapter.stop(&spec.id, std::time::Duration::ZERO).await;
    assert!(matches!(stopped, Err(AdapterError::Gone { .. })), "{stopped:?}");
    until("the instance ends", || !is_alive(instance.pid.expect("a pid"))).await;
    // Leaves the machine as it was.
    let next = SandboxAdapter::start(config(lab.directory.path())).await.expect("starts");
    next.shutdown().await;
    Outcome::Passed
}

async fn two_owners_do_not_meet(lab: Lab) -> Outcome {
    let other = SandboxAdapter::start(config(lab.directory.path())).await.expect("starts");
    assert_eq!(owners(lab.directory.path()).len(), 2);
    let spec = lab.spec(&id("same-name"), &["/bin/sleep", "1000"]);
    let one = lab.adapter.launch(&spec, None).await.expect("launch");
    let two = other.launch(&spec, None).await.expect("launch");
    other.shutdown().await;
    assert!(!is_alive(two.pid.expect("a pid")));
    assert!(is_alive(one.pid.expect("a pid")));
    assert_eq!(lab.adapter.recover().await.expect("recover"), [one]);
    lab.adapter.shutdown().await;
    Outcome::Passed
}
