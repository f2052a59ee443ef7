//! Every instance ends, everything that waits for an end has one, and the last words are heard.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use adapter::{Adapter, AdapterError, Metering};
use adapter_sandbox::{Config, SandboxAdapter};
use model::ExitStatus;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Test,
    drills::{self, is_alive},
    lab::{Lab, Outcome, children, config, id, is_root, status, until},
};

/// Those that may end otherwise for workers that are forked.
pub(crate) const OF_WORKERS: &[Test] = &[
    ("no_process_gets_out_of_its_instance", |lab| {
        Box::pin(no_process_gets_out_of_its_instance(lab))
    }),
    ("nobody_waits_for_an_instance_that_cannot_end", |lab| {
        Box::pin(nobody_waits_for_an_instance_that_cannot_end(lab))
    }),
    ("a_launcher_that_does_not_answer_is_killed", |lab| {
        Box::pin(a_launcher_that_does_not_answer_is_killed(lab))
    }),
    ("a_shutdown_needs_no_answer", |lab| Box::pin(a_shutdown_needs_no_answer(lab))),
];

pub(crate) const OF_STARTED: &[Test] = &[
    ("an_exit_status_survives_an_unread_order", |lab| {
        Box::pin(an_exit_status_survives_an_unread_order(lab))
    }),
    ("a_killed_daemon_leaves_no_launcher_that_waits", |lab| {
        Box::pin(a_killed_daemon_leaves_no_launcher_that_waits(lab))
    }),
];

pub(crate) const OF_FORKED: &[Test] =
    &[("the_launcher_collects_children_it_does_not_know", |lab| {
        Box::pin(the_launcher_collects_children_it_does_not_know(lab))
    })];

/// Every way to get another parent than one's own: as a sibling, by a clone that begins like `vfork`,
/// and as an orphan of a process that is itself a place for orphans.
const WAYS_OUT: &str = "
import ctypes, os, platform, time
libc = ctypes.CDLL(None, use_errno=True)
clone = 56 if platform.machine() == 'x86_64' else 220
for flags in 0x8000, 0x8000 | 0x4000:
    child = libc.syscall(clone, flags | 17, 0, 0, 0, 0)
    if child == 0: time.sleep(1000)
    print('made a sibling' if child != -1 else os.strerror(ctypes.get_errno()))
libc.prctl(36, 1, 0, 0, 0)
if os.fork() == 0:
    os.setsid()
    libc.prctl(36, 1, 0, 0, 0)
    if os.fork() == 0:
        if os.fork() == 0: time.sleep(1000)
    os._exit(0)
os.wait()
print('ready', flush=True)
time.sleep(1000)
";

async fn no_process_gets_out_of_its_instance(lab: Lab) -> Outcome {
    let spec = match lab.python("outward", WAYS_OUT) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let mut output = lab.launch(&spec).await;
    for _ in 0..2 {
        assert_eq!(output.line().await, "Operation not permitted");
    }
    assert_eq!(output.line().await, "ready");
    let init = lab.adapter.recover().await.expect("recover")[0].pid.expect("a pid");
    let mut expected = [vec![init], lab.forked(), lab.zygotes()].concat();
    let mut found = children(lab.launcher);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected, "nothing else has the launcher for a parent");
    lab.stop(&spec.id).await;
    until("nothing but zygotes is left", || children(lab.launcher) == lab.zygotes()).await;
    Outcome::Passed
}

/// A zygote that forks into an instance whatever it is asked for, as the launcher's child, and says
/// that it could not.
const SECRETIVE: &str = "
import ctypes, os, platform, socket, time
libc = ctypes.CDLL(None, use_errno=True)
clone = 56 if platform.machine() == 'x86_64' else 220
zygote = socket.socket(fileno=3)
zygote.send(b'\"Ready\"')
while True:
    asked, descriptors, _, _ = socket.recv_fds(zygote, 131072, 8)
    if not asked: break
    libc.setns(descriptors[0], 0x20000000)
    if libc.syscall(clone, 0x8000 | 17, 0, 0, 0, 0) == 0: time.sleep(1000)
    zygote.send(b'{\"Failed\":{\"step\":\"fork\",\"errno\":12}}')
    for descriptor in descriptors: os.close(descriptor)
";

async fn the_launcher_collects_children_it_does_not_know(lab: Lab) -> Outcome {
    let mut spec = lab.spec(&id("visited"), &["/bin/sleep", "1000"]);
    let command = spec.zygote.as_mut().expect("there is one");
    command.truncate(3);
    command.extend(["-c".into(), SECRETIVE.into()]);
    let others = lab.zygotes();
    for attempt in 0.. {
        assert!(attempt < 100, "no stranger comes");
        lab.launch(&spec).await;
        let init = lab.adapter.recover().await.expect("recover")[0].pid.expect("a pid");
        let is_stranger = |pid: &u32| *pid != init && lab.forked().contains(pid);
        let strangers: Vec<_> = children(lab.launcher).into_iter().filter(is_stranger).collect();
        // The kernel keeps the init until its launcher has collected the stranger.
        lab.stop(&spec.id).await;
        if !strangers.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until("nothing but zygotes is left", || {
        let left = children(lab.launcher);
        left.iter().all(|pid| lab.zygotes().contains(pid)) && left.len() <= others.len() + 1
    })
    .await;
    Outcome::Passed
}

/// Holds a process: once it has been killed, it is there until its tracer lets it go.
pub(crate) struct Tracer(Child);

const TRACER: &str = "
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
seized = libc.ptrace(0x4206, int(sys.argv[1]), None, None)
print('ok' if seized == 0 else os.strerror(ctypes.get_errno()), flush=True)
time.sleep(1000)
";

impl Tracer {
    fn hold(pid: u32) -> Result<Self, Outcome> {
        let skipped = |why: String| Outcome::Skipped(format!("no process can be held here: {why}"));
        if !is_root() {
            return Err(skipped("without root none of an instance can be traced".into()));
        }
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", TRACER, &pid.to_string()]).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| skipped(error.to_string()))?;
        let mut said = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut said).expect("readable");
        let tracer = Self(child);
        if said == "ok\n" { Ok(tracer) } else { Err(skipped(said)) }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn nobody_waits_for_an_instance_that_cannot_end(mut lab: Lab) -> Outcome {
    // With less patience than the usual, which is for disks.
    lab.adapter.shutdown().await;
    let config =
        Config { end_patience: Duration::from_millis(300), ..config(lab.directory.path()) };
    lab.adapter = SandboxAdapter::start(config).await.expect("starts");
    let [launcher] = children(std::process::id())[..] else { panic!("one child") };
    lab.launcher = launcher;
    if lab.has_zygote() {
        lab.forks().await;
    }

    let held = lab.spec(&id("held"), &["/bin/sleep", "1000"]);
    let instance = lab.adapter.launch(&held, None).await.expect("launch");
    let init = instance.pid.expect("a pid");
    let tracer = match Tracer::hold(lab.worker_of(init)) {
        Ok(tracer) => tracer,
        Err(skipped) => return skipped,
    };
    let (waited, stopped) =
        tokio::join!(lab.adapter.wait(&held.id), lab.adapter.stop(&held.id, Duration::ZERO));
    stopped.expect("a stop that does not wait for ever");
    assert!(waited.is_ok(), "{waited:?}");
    assert!(is_alive(init), "the drill holds it");
    assert_eq!(lab.adapter.recover().await.expect("recover"), []);
    let next = lab.script(&id("next"), "exit 3");
    assert_eq!(lab.run(&next).await.1.status, ExitStatus::Code(3), "others are not held up");

    // It ends as soon as it can, and is then collected.
    drop(tracer);
    until("the held instance ends", || children(lab.launcher) == lab.zygotes()).await;

    let instance = lab.adapter.launch(&held, None).await.expect("launch");
    let init = instance.pid.expect("a pid");
    let tracer = match Tracer::hold(lab.worker_of(init)) {
        Ok(tracer) => tracer,
        Err(skipped) => return skipped,
    };
    lab.adapter.shutdown().await;
    assert!(!is_alive(launcher), "it does not wait for ever, either");
    drop(tracer);
    until("the held instance ends", || !is_alive(init)).await;
    Outcome::Passed
}

async fn a_killed_daemon_leaves_no_launcher_that_waits(_: Lab) -> Outcome {
    let mut daemon = drills::Daemon::start();
    let init = daemon.instances[0];
    let tracer = match Tracer::hold(children(init)[0]) {
        Ok(tracer) => tracer,
        Err(skipped) => return skipped,
    };
    daemon.kill();
    until("the launcher ends", || !is_alive(daemon.launcher)).await;
    assert!(is_alive(init), "the drill holds it");
    drop(tracer);
    until("the held instance ends", || !is_alive(init)).await;
    // Its group could not be removed while it was there.
    let next = SandboxAdapter::start(config(daemon.directory.path())).await.expect("starts");
    next.shutdown().await;
    Outcome::Passed
}

async fn a_launcher_that_does_not_answer_is_killed(lab: Lab) -> Outcome {
    let spec = lab.spec(&id("running"), &["/bin/sleep", "1000"]);
    let init = lab.adapter.launch(&spec, None).await.expect("launch").pid.expect("a pid");
    halt(lab.launcher).await;
    tokio::time::pause();
    let stopped = lab.adapter.stop(&spec.id, Duration::from_secs(3)).await;
    assert!(matches!(stopped, Err(AdapterError::Gone { .. })), "{stopped:?}");
    tokio::time::resume();
    until("the launcher is killed", || !is_alive(lab.launcher)).await;
    until("the instance ends", || !is_alive(init)).await;
    // Leaves the machine as it was.
    SandboxAdapter::start(config(lab.directory.path())).await.expect("starts").shutdown().await;
    Outcome::Passed
}

async fn a_shutdown_needs_no_answer(lab: Lab) -> Outcome {
    let spec = lab.spec(&id("running"), &["/bin/sleep", "1000"]);
    let init = lab.adapter.launch(&spec, None).await.expect("launch").pid.expect("a pid");
    halt(lab.launcher).await;
    tokio::time::pause();
    lab.adapter.shutdown().await;
    tokio::time::resume();
    until("the launcher is killed", || !is_alive(lab.launcher)).await;
    until("the instance ends", || !is_alive(init)).await;
    SandboxAdapter::start(config(lab.directory.path())).await.expect("starts").shutdown().await;
    Outcome::Passed
}

/// The init learns at once that there is an order and that its worker has ended. It tells the end,
/// and goes; the order is never read, which the kernel tells the launcher as an error.
async fn an_exit_status_survives_an_unread_order(lab: Lab) -> Outcome {
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let spec = lab.script(&id("brief"), script);
    let mut output = lab.launch(&spec).await;
    assert_eq!(output.line().await, "ready");
    let init = lab.adapter.recover().await.expect("recover")[0].pid.expect("a pid");
    let worker = lab.worker_of(init);
    let artifact = lab.artifact();
    halt(init).await;
    let meanwhile = async {
        // The answer to a later question: the order is on its way.
        Metering::usage(&lab.adapter, &spec.id).await.expect("usage");
        halt(lab.launcher).await;
        signal(worker, Signal::TERM);
        until("the worker ends", || !is_alive(worker)).await;
        until("its init could know", || {
            let pending = u64::from_str_radix(&status(init, "ShdPnd"), 16).expect("a set");
            pending & (1 << (Signal::CHILD.as_raw() - 1)) != 0
        })
        .await;
        signal(init, Signal::CONT);
        until("its init ends", || !is_alive(init)).await;
        signal(lab.launcher, Signal::CONT);
    };
    let attaching = lab.adapter.attaching().expect("can attach");
    let attach = attaching.attach(&spec.id, &artifact, &spec.limits);
    let (attached, ()) = tokio::join!(attach, meanwhile);
    assert!(attached.is_err(), "{attached:?}");
    let exit = lab.adapter.wait(&spec.id).await.expect("wait");
    assert_eq!(exit.status, ExitStatus::Code(7));
    lab.stop(&spec.id).await;
    Outcome::Passed
}

/// A signal that stops a process is carried out when the process next looks.
async fn halt(pid: u32) {
    signal(pid, Signal::STOP);
    until("it is stopped", || status(pid, "State").starts_with('T')).await;
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, signal).expect("it is there");
}
