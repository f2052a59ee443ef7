//! What holds of zygotes, and of workers that are forked beside those that are started.

use std::{collections::BTreeSet, fs, io::Read, os::unix::net::UnixListener, path::Path};

use adapter::Adapter;
use adapter_sandbox::SandboxAdapter;
use model::{ExitStatus, InstanceSocket, LaunchSpec, Network};

use crate::{
    Test,
    drills::{is_alive, kill},
    lab::{Lab, Outcome, config, id, is_root, status, until},
};

pub(crate) const TESTS: &[Test] = &[
    ("forked_workers_are_confined_as_started_ones", |lab| {
        Box::pin(forked_workers_are_confined_as_started_ones(lab))
    }),
    ("forked_workers_have_randomness_of_their_own", |lab| {
        Box::pin(forked_workers_have_randomness_of_their_own(lab))
    }),
    ("the_python_worker_says_hello_either_way", |lab| {
        Box::pin(the_python_worker_says_hello_either_way(lab))
    }),
    ("a_zygote_knows_nothing_of_instances", |lab| {
        Box::pin(a_zygote_knows_nothing_of_instances(lab))
    }),
    ("a_zygote_that_dies_takes_nothing_with_it", |lab| {
        Box::pin(a_zygote_that_dies_takes_nothing_with_it(lab))
    }),
    ("a_zygote_ends_with_its_launcher", |lab| Box::pin(a_zygote_ends_with_its_launcher(lab))),
    ("zygotes_that_fail_fail_no_launch", |lab| Box::pin(zygotes_that_fail_fail_no_launch(lab))),
    ("stopping_while_forking_leaves_nothing", |lab| {
        Box::pin(stopping_while_forking_leaves_nothing(lab))
    }),
];

/// All that a process can tell of what it may do and can reach.
const CONFINEMENT: &str = r"
import os, socket
names = '''Umask Uid Gid Groups NoNewPrivs Seccomp Seccomp_filters CapInh CapPrm CapEff CapBnd CapAmb
SigBlk SigIgn SigCgt CoreDumping Threads NStgid NSpgid NSsid THP_enabled'''.split()
for line in open('/proc/self/status'):
    if line.split(':')[0] in names: print(line, end='')
print(open('/proc/self/limits').read(), open('/proc/self/cgroup').read())
print(open('/proc/self/oom_score_adj').read(), open('/proc/self/uid_map').read())
for line in open('/proc/self/mountinfo'):
    print(' '.join(line.split()[3:6]), line.split(' - ')[1], end='')
for place in 'cwd', 'root': print(place, os.readlink('/proc/self/' + place))
for number in sorted(os.listdir('/proc/self/fd')):
    try: print(number, os.readlink('/proc/self/fd/' + number).split(':')[0])
    except FileNotFoundError: pass
for file in 'environ', 'mem', 'oom_score_adj', 'ns', 'fd':
    print(file, oct(os.stat('/proc/self/' + file).st_mode), os.stat('/proc/self/' + file).st_uid)
print(os.getpid(), os.getpgrp(), os.getsid(0), os.getpriority(0, 0), os.sched_getaffinity(0))
print(sorted(os.environ.items()), socket.gethostname(), sorted(os.listdir('/')), os.listdir('/tmp'))
print([p for p in os.listdir('/proc') if p.isdigit()])
import ctypes
libc = ctypes.CDLL(None)
# Dumpable, keep capabilities, securebits, timer slack, signal with the parent's death, subreaper.
for option in 3, 7, 27, 30: print('prctl', option, libc.prctl(option, 0, 0, 0, 0))
for option in 2, 37:
    answer = ctypes.c_int()
    print('prctl', option, libc.prctl(option, ctypes.byref(answer), 0, 0, 0), answer.value)
print('personality', libc.personality(0xffffffff), 'scheduler', os.sched_getscheduler(0))
try: open('/dev/tty')
except OSError as error: print(error.strerror)
";

async fn forked_workers_are_confined_as_started_ones(lab: Lab) -> Outcome {
    let networks = [Network::None, Network::Host, Network::Egress];
    let egress = lab.adapter.no_egress().is_none();
    for network in networks.into_iter().filter(|network| egress || *network != Network::Egress) {
        let mut spec = match lab.python("confinement", CONFINEMENT) {
            Ok(spec) => spec,
            Err(skipped) => return skipped,
        };
        spec.network = network;
        // As every worker has it: without it, a Python that starts would choose something itself.
        spec.environment.push(("LANG".into(), "C.UTF-8".into()));
        lab.forks_like(&spec).await;
        let (forked, exit) = lab.run(&spec).await;
        assert_eq!(exit.status, ExitStatus::Code(0), "{forked}");
        let (started, _) = lab.run(&LaunchSpec { zygote: None, ..spec.clone() }).await;
        for (one, other) in forked.lines().zip(started.lines()) {
            assert_eq!(one, other, "{network}: forked, and started");
        }
        assert_eq!(forked, started);
        assert!(forked.contains("NoNewPrivs:\t1\n"), "{forked}");

        // Each has namespaces of its own, those of its init.
        spec.command[4] = "print('there', flush=True); import time; time.sleep(1000)".into();
        let mut output = lab.launch(&spec).await;
        assert_eq!(output.line().await, "there");
        let init = lab.adapter.recover().await.expect("recover")[0].pid.expect("a pid");
        let worker = lab.forked()[0];
        if is_root() {
            let namespaces = |pid: u32| {
                let entries = fs::read_dir(format!("/proc/{pid}/ns")).expect("root may look");
                let links = entries.flatten().map(|entry| fs::read_link(entry.path()));
                links.map(|link| link.expect("a namespace")).collect::<BTreeSet<_>>()
            };
            assert_eq!(namespaces(worker), namespaces(init));
            let shared = namespaces(worker).intersection(&namespaces(std::process::id())).count();
            // The one of time, and the network if it is the host's.
            assert!(shared <= 2 + usize::from(network == Network::Host), "{shared}");
        }
        assert_eq!(fs::read(format!("/proc/{worker}/environ")).unwrap_or_default(), b"");
        lab.stop(&spec.id).await;
    }
    Outcome::Passed
}

async fn forked_workers_have_randomness_of_their_own(lab: Lab) -> Outcome {
    let program = "import os, random, tempfile, uuid
print(random.random(), random.SystemRandom().random(), uuid.uuid4(), uuid.uuid1(), os.urandom(8).hex(),
    random.getrandbits(64), tempfile.mktemp(), sep='\\n')";
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let spec = match lab.python("random", program) {
            Ok(spec) => spec,
            Err(skipped) => return skipped,
        };
        let (output, exit) = lab.run(&spec).await;
        assert_eq!(output.lines().count(), 7, "{exit:?}");
        for line in output.lines() {
            assert!(seen.insert(line.to_owned()), "{line} came before");
        }
    }
    Outcome::Passed
}

async fn the_python_worker_says_hello_either_way(lab: Lab) -> Outcome {
    let runtime = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtimes/python");
    let mut hellos = BTreeSet::new();
    for is_forked in [false, true] {
        let directory = lab.directory.path().join(format!("socket-{is_forked}"));
        fs::create_dir(&directory).expect("a directory");
        let path = directory.join("worker.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut spec = match lab.python("worker", "") {
            Ok(spec) => spec,
            Err(skipped) => return skipped,
        };
        spec.server = fs::canonicalize(&runtime).expect("the runtime");
        spec.command.truncate(3);
        spec.command.extend(["-X", "utf8", "{server}/src/worker.py"].map(Into::into));
        spec.zygote = Some([&spec.command[..], &["--zygote".into()]].concat());
        if is_forked {
            lab.forks_like(&spec).await;
        }
        spec.socket = Some(InstanceSocket { variable: "HEARTH_SOCKET".into(), path });
        lab.launch(&spec).await;
        let hello = tokio::task::spawn_blocking(move || {
            let (mut connection, _) = listener.accept().expect("a connection");
            let mut length = [0; 4];
            connection.read_exact(&mut length).expect("a length");
            let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("fits")];
            connection.read_exact(&mut frame).expect("a frame");
            (frame, connection)
        });
        let (hello, connection) = hello.await.expect("no panic");
        hellos.insert(hello);
        assert_eq!(lab.forked().len(), usize::from(is_forked));
        // Its host is gone, which ends it.
        drop(connection);
        let exit = lab.adapter.wait(&spec.id).await.expect("wait");
        assert_eq!(exit.status, ExitStatus::Code(0));
        lab.stop(&spec.id).await;
    }
    assert_eq!(hellos.len(), 1, "the same words: {hellos:?}");
    Outcome::Passed
}

async fn a_zygote_knows_nothing_of_instances(lab: Lab) -> Outcome {
    let zygote = lab.zygotes()[0];
    let mut spec = lab.script(&id("secretive"), "echo ready; sleep 1000");
    spec.environment.push(("SECRET".into(), "xyzzy-plugh".into()));
    let mut output = lab.launch(&spec).await;
    assert_eq!(output.line().await, "ready");
    assert_eq!(lab.forked().len(), 1);
    assert!(status(zygote, "CapBnd").ends_with("00000000002c0000"), "only namespaces");
    assert_eq!(status(zygote, "CapEff"), status(zygote, "CapBnd"));
    assert_eq!(status(zygote, "NoNewPrivs"), "1");
    if is_root() {
        assert_eq!(fs::read_to_string(format!("/proc/{zygote}/environ")).expect("there"), "");
        assert!(!memory(zygote).windows(11).any(|bytes| bytes == b"xyzzy-plugh"));
        // It has seen the same words in the files of its runtime, so the test looks well.
        assert!(memory(zygote).windows(19).any(|bytes| bytes == b"HEARTH_TEST_COMMAND"));
        let descriptors = fs::read_dir(format!("/proc/{zygote}/fd")).expect("there").count();
        assert_eq!(descriptors, 4, "the standard ones and the launcher's");
        assert!(!std::path::Path::new(&format!("/proc/{zygote}/root/proc/1")).exists());
    }
    lab.stop(&spec.id).await;
    Outcome::Passed
}

/// All that a process could write in its memory.
fn memory(pid: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("root may look");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("root may look");
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) =
            line.split(' ').next().and_then(|area| area.split_once('-')).expect("area");
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        let size = usize::try_from(number(to) - number(from)).expect("fits");
        let mut part = vec![0; size];
        if memory.read_exact_at(&mut part, number(from)).is_ok() {
            all.extend(part);
        }
    }
    all
}

async fn a_zygote_that_dies_takes_nothing_with_it(lab: Lab) -> Outcome {
    let zygote = lab.zygotes()[0];
    let survivor = lab.script(&id("survivor"), "echo ready; read line; exit 7");
    let survivor = LaunchSpec {
        command: vec!["/bin/sh".into(), "-c".into(), "echo ready; sleep 1; exit 7".into()],
        ..survivor
    };
    let mut output = lab.launch(&survivor).await;
    assert_eq!(output.line().await, "ready");
    assert_eq!(lab.forked().len(), 1);
    kill(zygote);
    let next = lab.script(&id("next"), "echo works");
    assert_eq!(lab.run(&next).await.0, "works\n", "it is started as a program, or forked");
    let exit = lab.adapter.wait(&survivor.id).await.expect("wait");
    assert_eq!(exit.status, ExitStatus::Code(7));
    lab.stop(&survivor.id).await;
    lab.forks().await;
    assert_ne!(lab.zygotes()[0], zygote);
    assert_eq!(lab.zygotes().len(), 1);
    Outcome::Passed
}

async fn a_zygote_ends_with_its_launcher(lab: Lab) -> Outcome {
    let zygote = lab.zygotes()[0];
    let spec = lab.script(&id("running"), "echo ready; sleep 1000");
    let mut output = lab.launch(&spec).await;
    assert_eq!(output.line().await, "ready");
    let workers = lab.forked();
    assert_eq!(workers.len(), 1);
    kill(lab.launcher);
    until("the zygote ends", || !is_alive(zygote)).await;
    until("the worker ends", || !is_alive(workers[0])).await;
    // Leaves the machine as it was.
    let next = SandboxAdapter::start(config(lab.directory.path())).await.expect("starts");
    next.shutdown().await;
    Outcome::Passed
}

/// Zygotes that are wrong, each in its way, and whether they ever run.
const WRONG: [(&str, &str); 5] = [
    ("ends at once", "raise SystemExit(1)"),
    ("is no zygote", "zygote.send(b'{}'); time.sleep(1000)"),
    (
        "refuses",
        "zygote.send(b'\"Ready\"')
while zygote.recv(100): zygote.send(b'{\"Failed\":{\"step\":\"fork\",\"errno\":12}}')",
    ),
    ("does not answer", "zygote.send(b'\"Ready\"'); time.sleep(1000)"),
    (
        "forks what fails",
        "zygote.send(b'\"Ready\"')
while True:
    _, descriptors, _, _ = socket.recv_fds(zygote, 100, 8)
    child = os.fork()
    if child == 0: os._exit(0)
    socket.send_fds(zygote, [b'{\"Forked\":%d}' % child], [os.pidfd_open(child)])
    for descriptor in descriptors: os.close(descriptor)",
    ),
];

async fn zygotes_that_fail_fail_no_launch(lab: Lab) -> Outcome {
    for (what, program) in WRONG {
        let mut spec = lab.script(&id("steady"), "echo works");
        let command = spec.zygote.as_mut().expect("there is one");
        command.truncate(3);
        let program =
            format!("import os, socket, time\nzygote = socket.socket(fileno=3)\n{program}");
        command.extend(["-c".into(), program]);
        // The first starts as a program and wants a zygote; one of the others meets it.
        for _ in 0..8 {
            let (output, exit) = lab.run(&spec).await;
            assert_eq!((output.as_str(), exit.status), ("works\n", ExitStatus::Code(0)), "{what}");
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        }
    }
    Outcome::Passed
}

async fn stopping_while_forking_leaves_nothing(lab: Lab) -> Outcome {
    for number in 0..40 {
        let spec = lab.spec(&id(&format!("brief-{number}")), &["/bin/sleep", "1000"]);
        let launching = lab.adapter.launch(&spec, None);
        let soon = std::time::Duration::from_micros(number * 150);
        let launched = tokio::time::timeout(soon, launching).await;
        lab.stop(&spec.id).await;
        drop(launched);
    }
    assert_eq!(lab.adapter.recover().await.expect("recover"), []);
    until("nothing but the zygote is left", || crate::lab::children(lab.launcher) == lab.zygotes())
        .await;
    lab.forks().await;
    Outcome::Passed
}
