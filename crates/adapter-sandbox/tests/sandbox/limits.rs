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
