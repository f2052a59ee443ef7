//! What holds from an attach on, and what an instance is said to use.

use adapter::{Adapter, AdapterError};
use model::{ExitStatus, LaunchSpec, Limits, Usage};

use crate::{
    Test,
    lab::{Lab, Outcome, Output, id},
};

pub(crate) const TESTS: &[Test] = &[
    ("memory_is_bounded_as_attached", |lab| Box::pin(memory_is_bounded_as_attached(lab))),
    ("processes_are_bounded_as_attached", |lab| Box::pin(processes_are_bounded_as_attached(lab))),
    ("processor_time_is_bounded_as_attached", |lab| {
        Box::pin(processor_time_is_bounded_as_attached(lab))
    }),
    ("scratch_space_grows_as_attached", |lab| Box::pin(scratch_space_grows_as_attached(lab))),
    ("open_files_are_bounded_as_attached", |lab| Box::pin(open_files_are_bounded_as_attached(lab))),
    ("sockets_are_part_of_the_memory", |lab| Box::pin(sockets_are_part_of_the_memory(lab))),
    ("unread_datagrams_are_part_of_the_memory", |lab| {
        Box::pin(unread_datagrams_are_part_of_the_memory(lab))
    }),
    ("the_host_takes_instances_first", |lab| Box::pin(the_host_takes_instances_first(lab))),
    ("all_together_are_bounded_and_the_largest_ends", |lab| {
        Box::pin(all_together_are_bounded_and_the_largest_ends(lab))
    }),
    ("usage_follows_what_an_instance_does", |lab| {
        Box::pin(usage_follows_what_an_instance_does(lab))
    }),
];

/// What a program begins with that is to act only once it has its code.
const ATTACHED: &str = "
import os, time
while not os.path.exists('/mnt/code/main.txt'): time.sleep(0.01)
";

async fn launch_and_attach(lab: &Lab, spec: &LaunchSpec, limits: &Limits) -> Output {
    let output = lab.launch(spec).await;
    let attaching = lab.adapter.attaching().expect("can attach");
    attaching.attach(&spec.id, &lab.artifact(), limits).await.expect("attach");
    output
}

async fn memory_is_bounded_as_attached(lab: Lab) -> Outcome {
    let program = "
for size in range(1, 400):
    globals()[f'kept{size}'] = bytearray(1 << 20)
    print(size, flush=True)
";
    for (first, then, least, most) in [(512, 64, 20, 64), (64, 512, 399, 399)] {
        let mut spec = match lab.python("memory", &format!("{ATTACHED}{program}")) {
            Ok(spec) => spec,
            Err(skipped) => return skipped,
        };
        spec.limits = Limits::with_memory(first << 20);
        if !lab.has_groups() && first < then {
            println!("skipped: a part of memory_is_bounded_as_attached: needs cgroups");
            continue;
        }
        let output = launch_and_attach(&lab, &spec, &Limits::with_memory(then << 20)).await;
        let exit = lab.adapter.wait(&spec.id).await.expect("wait");
        lab.stop(&spec.id).await;
        let said = output.rest().await;
        let kept: Vec<u32> = said.lines().filter_map(|line| line.parse().ok()).collect();
        let kept = kept.last().copied().expect("some memory");
        // Where each process is limited by itself, what an engine sets aside has room beside it.
        let most = if lab.has_groups() { most } else { most + 64 };
        assert!((least..=most).contains(&kept), "{kept} MiB of {then}: {exit:?}");
        if lab.has_groups() {
            assert_eq!(exit.out_of_memory, first > then, "{exit:?}");
        }
    }
    Outcome::Passed
}

async fn processes_are_bounded_as_attached(lab: Lab) -> Outcome {
    let program = "
children = 0
try:
    while children < 60:
        if os.fork() == 0: time.sleep(1000)
        children += 1
except OSError: pass
print(children, flush=True)
";
    for (first, then, expected) in [(200, 20, 10..=20), (20, 200, 60..=60)] {
        let mut spec = match lab.python("processes", &format!("{ATTACHED}{program}")) {
            Ok(spec) => spec,
            Err(skipped) => return skipped,
        };
        if !lab.has_groups() && first < then {
            println!("skipped: a part of processes_are_bounded_as_attached: needs cgroups");
            continue;
        }
        spec.limits = Limits { pids: first, ..Limits::default() };
        let limits = Limits { pids: then, ..Limits::default() };
        let mut output = launch_and_attach(&lab, &spec, &limits).await;
        let children: u32 = output.line().await.parse().expect("a number");
        assert!(expected.contains(&children), "{children} children of {then}");
        lab.stop(&spec.id).await;
    }
    Outcome::Passed
}

async fn processor_time_is_bounded_as_attached(lab: Lab) -> Outcome {
    if !lab.has_groups() {
        return Outcome::Skipped("needs cgroups".into());
    }
    // A tenth of a processor cannot give two threads of work more than a tenth of the time.
    let program = "
start, busy = time.monotonic(), time.process_time()
while time.monotonic() - start < 1: pass
print((time.process_time() - busy) / (time.monotonic() - start), flush=True)
";
    let spec = match lab.python("time", &format!("{ATTACHED}{program}")) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let limits = Limits { cpus_milli: 100, ..spec.limits.clone() };
    let mut output = launch_and_attach(&lab, &spec, &limits).await;
    let share: f64 = output.line().await.parse().expect("a share");
    lab.stop(&spec.id).await;
    // One slice of time more may be begun than the second has.
    assert!(share < 0.25, "{share} of a processor");
    Outcome::Passed
}

async fn scratch_space_grows_as_attached(lab: Lab) -> Outcome {
    let program = "
def fill(path, most):
    written = 0
    try:
        with open(path, 'wb', buffering=0) as file:
            while written < most: written += file.write(bytes(65536))
    except OSError as error: print(error.strerror)
    return written
def create(most):
    made = 0
    try:
        for made in range(most): open(f'/dev/shm/{made}', 'x').close()
    except OSError as error: print(error.strerror)
    return made
print(fill('/tmp/file', 6 << 20), create(500), fill('/tmp/more', 16 << 20) < 12 << 20, flush=True)
";
    let mut spec = match lab.python("scratch", &format!("{ATTACHED}{program}")) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let small = Limits { scratch_bytes: 1 << 20, scratch_inodes: 100, ..spec.limits.clone() };
    let big = Limits { scratch_bytes: 16 << 20, scratch_inodes: 1000, ..spec.limits.clone() };
    spec.limits = small;
    let output = launch_and_attach(&lab, &spec, &big).await;
    let exit = lab.adapter.wait(&spec.id).await.expect("wait");
    lab.stop(&spec.id).await;
    let said = output.rest().await;
    assert_eq!(said, "No space left on device\n6291456 499 True\n", "{exit:?}");
    Outcome::Passed
}

async fn open_files_are_bounded_as_attached(lab: Lab) -> Outcome {
    let program = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)";
    let spec = match lab.python("files", &format!("{ATTACHED}{program}")) {
        Ok(spec) => LaunchSpec {
            // The module is a library of its own.
            command: [&spec.command[..1], &["-c".into(), format!("{ATTACHED}{program}")]].concat(),
            ..spec
        },
        Err(skipped) => return skipped,
    };
    let limits = Limits { open_files: 100, ..spec.limits.clone() };
    let mut output = launch_and_attach(&lab, &spec, &limits).await;
    assert_eq!(output.line().await, "(100, 100)");
    lab.stop(&spec.id).await;
    Outcome::Passed
}

/// Whether the kernel counts what sockets hold.
fn counts_sockets(lab: &Lab) -> bool {
    !lab.adapter.weaknesses().iter().any(|weakness| weakness.contains("sockets are not counted"))
}

/// Fills sockets as a program says, and compares what they hold with what was promised.
async fn sockets_hold_no_more_than_was_attached(lab: Lab, program: &str) -> Outcome {
    if !counts_sockets(&lab) {
        return Outcome::Skipped("the kernel does not count sockets here".into());
    }
    // With 512 MiB they would hold more than either bound.
    for (first, then) in [(512_u64, 64_u64), (32, 64)] {
        let mut spec = match lab.python("sockets", &format!("{ATTACHED}{program}")) {
            Ok(spec) => spec,
            Err(skipped) => return skipped,
        };
        spec.limits = Limits::with_memory(first << 20);
        let limits = Limits::with_memory(then << 20);
        let mut output = launch_and_attach(&lab, &spec, &limits).await;
        let said = output.line().await;
        if said.is_empty() {
            // Version 2 has one bound for everything.
            let exit = lab.adapter.wait(&spec.id).await.expect("wait");
            assert!(exit.out_of_memory, "{exit:?}");
        } else {
            let held: u64 = said.parse().expect("a number");
            let usage = lab.adapter.metering().expect("can tell").usage(&spec.id).await;
            let used = usage.expect("usage").memory_bytes;
            assert!(held > 1 << 20, "{held} bytes");
            assert!(held <= then << 20, "{} MiB in sockets of {then}", held >> 20);
            // The last buffer may be begun when there is no more.
            assert!(used <= (then + 8) << 20, "{} MiB used of {then}", used >> 20);
            assert!(used >= held, "{used} bytes used with {held} in sockets");
        }
        lab.stop(&spec.id).await;
    }
    Outcome::Passed
}

async fn sockets_are_part_of_the_memory(lab: Lab) -> Outcome {
    let program = "
import socket
listener = socket.create_server(('127.0.0.1', 0), backlog=10)
kept, held = [], 0
for _ in range(200):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    kept += [client, server]
    client.setblocking(False)
    try:
        for _ in range(128): held += client.send(bytes(65536))
    except BlockingIOError: pass
print(held, flush=True)
time.sleep(1000)
";
    sockets_hold_no_more_than_was_attached(lab, program).await
}

async fn unread_datagrams_are_part_of_the_memory(lab: Lab) -> Outcome {
    let program = "
import socket
kept, sender = [], socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(500):
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    receiver.bind(('127.0.0.1', 0))
    receiver.setblocking(False)
    kept.append(receiver)
    for _ in range(100): sender.sendto(bytes(40000), receiver.getsockname())
# What a receiver has no room for is dropped, which the sender does not hear of.
print(int(open('/proc/net/sockstat').read().split('UDP:')[1].split()[3]) * 4096, flush=True)
time.sleep(1000)
";
    sockets_hold_no_more_than_was_attached(lab, program).await
}

async fn the_host_takes_instances_first(lab: Lab) -> Outcome {
    let program = "
import os
def refused(what):
    try: what()
    except OSError: return 'refused'
    return 'done'
def write():
    with open('/proc/self/oom_score_adj', 'w') as file: file.write('0')
print(open('/proc/self/oom_score_adj').read().strip(), refused(write), os.getpriority(0, 0),
      refused(lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(0, 0) - 1)), flush=True)
";
    let spec = match lab.python("first", program) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let (said, exit) = lab.run(&spec).await;
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words.len(), 4, "{said} {exit:?}");
    assert!(words[0].parse::<i32>().expect("a score") >= 900, "{said}");
    let is_weighed =
        !lab.adapter.weaknesses().iter().any(|text| text.contains("no cgroup for cpu"));
    let nice: i32 = words[2].parse().expect("a level");
    assert!(is_weighed || nice >= 10, "{said}");
    assert_eq!((words[1], words[3]), ("refused", "refused"), "{said}");
    Outcome::Passed
}

/// The file with the limit of all instances of the owner whose instance this is.
fn limit_of_all(pid: u32) -> Option<std::path::PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let candidates = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let owner = std::path::Path::new(path.trim_start_matches('/')).parent()?;
        let top = std::path::Path::new("/sys/fs/cgroup");
        match controllers {
            "memory" => Some(top.join("memory").join(owner).join("memory.limit_in_bytes")),
            "" => Some(top.join(owner).join("memory.max")),
            _ => None,
        }
    });
    let mut found = candidates.filter(|file| file.exists());
    found.find(|file| file.components().any(|part| part.as_os_str() == "hearth"))
}

async fn all_together_are_bounded_and_the_largest_ends(lab: Lab) -> Outcome {
    let Some(all) = lab.adapter.memory_bytes() else {
        return Outcome::Skipped("nothing limits all instances together here".into());
    };
    let program = "
import time
print('begun', flush=True)
kept = [bytearray(1 << 20) for _ in range(SIZE)]
print('kept', flush=True)
time.sleep(1000)
";
    let sized = |name, size: u32| {
        let program = program.replace("SIZE", &size.to_string());
        lab.python(name, &program)
            .map(|spec| LaunchSpec { limits: Limits::with_memory(512 << 20), ..spec })
    };
    let (large, small) = match (sized("large", 120), sized("small", 60)) {
        (Ok(large), Ok(small)) => (large, small),
        (Err(skipped), _) | (_, Err(skipped)) => return skipped,
    };
    let mut output = lab.launch(&large).await;
    assert_eq!(output.line().await, "begun");
    assert_eq!(output.line().await, "kept");
    let instances = lab.adapter.recover().await.expect("instances");
    let pid = instances.first().and_then(|instance| instance.pid).expect("runs");
    let Some(file) = limit_of_all(pid) else {
        return Outcome::Skipped("the groups are not where this test looks for them".into());
    };
    let limit: u64 = std::fs::read_to_string(&file).expect("a limit").trim().parse().expect("set");
    // Version 1 sets a part aside for sockets.
    assert!(limit <= all && limit >= all / 2, "{limit} of {all}");

    // As if the host were small: there is room for each, and not for both.
    std::fs::write(&file, (150 << 20).to_string()).expect("lowered");
    let mut output = lab.launch(&small).await;
    assert_eq!(output.line().await, "begun");
    let exit = lab.adapter.wait(&large.id).await.expect("wait");
    assert!(exit.out_of_memory, "{exit:?}");
    assert_eq!(output.line().await, "kept", "the other goes on");
    lab.stop(&small.id).await;
    lab.stop(&large.id).await;
    Outcome::Passed
}

async fn usage_follows_what_an_instance_does(lab: Lab) -> Outcome {
    let program = "
import os, time
def work(seconds):
    while time.process_time() < seconds: pass
print('idle', flush=True)
while not os.path.exists('/mnt/code/main.txt'): time.sleep(0.01)
kept = bytearray(40 << 20)
if os.fork() == 0:
    work(0.3)
    os._exit(0)
os.wait()
work(0.3)
print('busy', flush=True)
time.sleep(1000)
";
    let spec = match lab.python("usage", program) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let metering = lab.adapter.metering().expect("can tell");
    let mut output = lab.launch(&spec).await;
    assert_eq!(output.line().await, "idle");
    let before = metering.usage(&spec.id).await.expect("usage");
    assert!(before.memory_bytes > 1 << 20, "{before:?}");
    let attaching = lab.adapter.attaching().expect("can attach");
    attaching.attach(&spec.id, &lab.artifact(), &spec.limits).await.expect("attach");
    assert_eq!(output.line().await, "busy");
    let Usage { memory_bytes, cpu_time } = metering.usage(&spec.id).await.expect("usage");
    assert!(memory_bytes >= before.memory_bytes + (39 << 20), "{memory_bytes} {before:?}");
    assert!(memory_bytes <= spec.limits.memory_bytes, "{memory_bytes}");
    // Both processes' work, counted in ticks.
    assert!(cpu_time.as_millis() >= before.cpu_time.as_millis() + 550, "{cpu_time:?} {before:?}");
    lab.stop(&spec.id).await;
    let unknown = metering.usage(&spec.id).await;
    assert!(matches!(unknown, Err(AdapterError::Unknown(_))), "{unknown:?}");
    assert_eq!(lab.run(&lab.script(&id("after"), "exit 3")).await.1.status, ExitStatus::Code(3));
    Outcome::Passed
}
