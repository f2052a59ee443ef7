//! What the kernel has once for everybody cannot be used up, slowed or watched from an instance.

use std::{
    fs,
    io::Read,
    os::unix::{
        fs::{FileExt, PermissionsExt},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Test,
    lab::{Lab, Outcome, id, is_root, until},
};

pub(crate) const TESTS: &[Test] = &[
    ("what_all_share_is_out_of_reach", |lab| Box::pin(what_all_share_is_out_of_reach(lab))),
    ("programs_find_what_they_usually_use", |lab| {
        Box::pin(programs_find_what_they_usually_use(lab))
    }),
    ("no_crash_runs_a_program_of_the_host", |lab| {
        Box::pin(no_crash_runs_a_program_of_the_host(lab))
    }),
];

/// Numbers are those of x86_64 and of arm64.
const SHARED: &str = "
import ctypes, errno, fcntl, mmap, os, platform, resource
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
intel = platform.machine() == 'x86_64'
def call(name, x86, arm, *arguments):
    ctypes.set_errno(0)
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(x86 if intel else arm, *words)
    print(name, result if result >= 0 else errno.errorcode[ctypes.get_errno()])
usr = os.open('/usr/bin/env', os.O_RDONLY)
call('io_setup', 206, 0, 1000, ctypes.byref(ctypes.c_long(0)))
call('sync', 162, 81)
call('syncfs', 306, 267, usr)
call('fsync', 74, 82, usr)
call('fdatasync', 75, 83, usr)
call('evict', 221, 223, usr, 0, 0, 4)
call('cachestat', 451, 451, usr, ctypes.create_string_buffer(16), ctypes.create_string_buffer(64), 0)
class Part(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
space = ctypes.create_string_buffer(16)
part = Part(ctypes.addressof(space), 16)
call('preadv2', 327, 286, usr, ctypes.byref(part), 1, 0, 0, 8)
call('preadv2 that waits', 327, 286, usr, ctypes.byref(part), 1, 0, 0, 0)
call('huge pages', 9, 222, 0, 2 << 20, 3, 0x40022, -1, 0)
call('huge file', 319, 279, b'huge', 4)
call('huge segment', 29, 194, 0, 2 << 20, 0o5600)
call('membarrier', 324, 283, 2, 0, 0)
call('core scheduling', 157, 167, 62, 1, 0, 0, 0)
call('sched_setattr', 314, 274, 0, ctypes.create_string_buffer(64), 0)
call('fanotify', 301, 263, 0, 0, 0, -100, b'/usr')
call('core limit', 160, 164, 4, ctypes.create_string_buffer(16))
call('core limit of 64 bits', 302, 261, 0, 4, ctypes.create_string_buffer(16), 0)
def attempt(name, what):
    try: print(name, what())
    except (OSError, ValueError) as error: print(name, errno.errorcode.get(getattr(error, 'errno', 0), 'refused'))
attempt('lease', lambda: fcntl.fcntl(os.open('/tmp/own', os.O_CREAT | os.O_RDONLY), 1024, fcntl.F_RDLCK))
attempt('notify', lambda: fcntl.fcntl(os.open('/usr/bin', os.O_RDONLY), 1026, 1))
attempt('core limit by name', lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))
print('limits', *(resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in ('CORE', 'NICE', 'RTPRIO')))
";

const REFUSED: &str = "\
io_setup ENOSYS
sync 0
syncfs 0
fsync 0
fdatasync 0
evict 0
cachestat ENOSYS
preadv2 EOPNOTSUPP
preadv2 that waits 16
huge pages ENOMEM
huge file ENOSYS
huge segment EPERM
membarrier EINVAL
core scheduling EINVAL
sched_setattr EPERM
fanotify EPERM
core limit EINVAL
core limit of 64 bits EINVAL
lease EINVAL
notify EINVAL
core limit by name refused
limits (1, 1) (0, 0) (0, 0)
";

async fn what_all_share_is_out_of_reach(lab: Lab) -> Outcome {
    let spec = match lab.python("greedy", SHARED) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let (output, exit) = lab.run(&spec).await;
    // Some C libraries say ENOTSUP, which is the same number.
    assert_eq!(output.replace("ENOTSUP\n", "EOPNOTSUPP\n"), REFUSED, "{exit:?}");
    Outcome::Passed
}

/// What runtimes and common libraries ask of the kernel on their way, and cannot do without.
const USUAL: &str = "
import ctypes, fcntl, mmap, multiprocessing, os, platform, resource, select, signal, socket
import subprocess, tempfile, threading
libc = ctypes.CDLL(None, use_errno=True)
intel = platform.machine() == 'x86_64'
with tempfile.TemporaryFile() as file:
    file.write(b'x' * 8192)
    file.flush()
    os.fsync(file.fileno()); os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with mmap.mmap(file.fileno(), 8192) as view: view[0] = 1; view.flush()
    fcntl.lockf(file, fcntl.LOCK_EX); fcntl.flock(file, fcntl.LOCK_EX)
    assert os.preadv(file.fileno(), [bytearray(8)], 0) == 8
os.sync()
memory = os.memfd_create('name', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
reader, writer = os.pipe()
fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 8192)
area = mmap.mmap(-1, 1 << 20)
area.madvise(mmap.MADV_DONTNEED); area.madvise(mmap.MADV_HUGEPAGE)
# As Java and .NET do: ask what there is, register, use the private kind.
for command in 0, 16, 8: assert libc.syscall(324 if intel else 283, command, 0, 0) >= 0, command
assert libc.prctl(15, b'renamed', 0, 0, 0) == 0
assert len(os.sched_getaffinity(0)) > 0
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.nice(1)
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
assert resource.prlimit(0, resource.RLIMIT_CORE) == (1, 1)
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
assert subprocess.run(['/bin/sh', '-c', 'exit 3']).returncode == 3
assert os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)[1]) == 0
with select.epoll() as watched: watched.register(reader)
signal.setitimer(signal.ITIMER_REAL, 1000)
print('all there')
";

async fn programs_find_what_they_usually_use(lab: Lab) -> Outcome {
    let spec = match lab.python("usual", USUAL) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let (output, exit) = lab.run(&spec).await;
    assert_eq!(output, "all there\n", "{exit:?}");
    Outcome::Passed
}

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// A program of the host that gets core dumps, and notes of which process. Only one test on this
/// machine may have one at a time; the one there was comes back.
struct Helper {
    notes: PathBuf,
    before: Vec<u8>,
    /// Held while it is this test's turn. What was there before is in it, should the test be killed.
    turn: fs::File,
}

impl Helper {
    fn install(directory: &Path) -> Result<Self, Outcome> {
        if !is_root() {
            return Err(Outcome::Skipped("only root may choose who gets core dumps".into()));
        }
        let mut options = fs::File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let turn = options.open("/run/hearth-test-core-pattern").expect("a lock");
        turn.lock().expect("its turn");
        let mut before = Vec::new();
        (&turn).read_to_end(&mut before).expect("readable");
        if before.is_empty() {
            before = fs::read(PATTERN).expect("readable");
            turn.write_all_at(&before, 0).expect("written");
        }
        let notes = directory.join("dumps");
        fs::create_dir(&notes).expect("a directory");
        let program = directory.join("helper");
        let text = format!("#!/bin/sh\n: > {}/$1\nexec cat > /dev/null\n", notes.display());
        fs::write(&program, text).expect("a program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
        let pattern = format!("|{} %P", program.display());
        assert!(pattern.len() < 127, "the kernel would cut it");
        if let Err(error) = fs::write(PATTERN, pattern) {
            return Err(Outcome::Skipped(format!("core_pattern cannot be written: {error}")));
        }
        Ok(Self { notes, before, turn })
    }

    fn has_run_for(&self, pid: u32) -> bool {
        self.notes.join(pid.to_string()).exists()
    }

    /// A crash outside of any instance, whose dump the helper gets for certain. What was dumped
    /// before has been given to it by then.
    async fn is_ready(&self) -> bool {
        let mut child =
            Command::new("/bin/sh").args(["-c", "kill -SEGV $$"]).spawn().expect("a shell");
        let pid = child.id();
        let status = child.wait().expect("its end");
        if !status.core_dumped() {
            return false;
        }
        until("the helper notes a crash", || self.has_run_for(pid)).await;
        true
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        fs::write(PATTERN, &self.before).expect("core_pattern as it was");
        self.turn.set_len(0).expect("emptied");
    }
}

async fn no_crash_runs_a_program_of_the_host(lab: Lab) -> Outcome {
    let helper = match Helper::install(lab.directory.path()) {
        Ok(helper) => helper,
        Err(skipped) => return skipped,
    };
    if !helper.is_ready().await {
        return Outcome::Skipped("the kernel runs no program for a crash outside, either".into());
    }
    // The worker, after it has tried to get a dump.
    let crash = "
import ctypes, os, resource
libc = ctypes.CDLL(None)
for limit in (-1, -1), (0, 1), (2, 2):
    try: resource.setrlimit(resource.RLIMIT_CORE, limit)
    except (OSError, ValueError): pass
libc.prctl(4, 1, 0, 0, 0)
if os.fork() == 0: os.execv('/bin/sh', ['sh', '-c', '(ulimit -c unlimited) 2>/dev/null; kill -SEGV $$'])
os.wait()
print('ready', flush=True)
import time; time.sleep(1000)
";
    let spec = match lab.python("crash", crash) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let mut output = lab.launch(&spec).await;
    assert_eq!(output.line().await, "ready");
    let init = adapter::Adapter::recover(&lab.adapter).await.expect("recover")[0].pid;
    let init = init.expect("a pid");
    let worker = lab.worker_of(init);
    crash_it(worker);
    adapter::Adapter::wait(&lab.adapter, &spec.id).await.expect("wait");
    lab.stop(&spec.id).await;

    // The init, and what runs outside of instances for them.
    let running = lab.script(&id("running"), "echo ready; exec sleep 1000");
    let mut output = lab.launch(&running).await;
    assert_eq!(output.line().await, "ready");
    let other = adapter::Adapter::recover(&lab.adapter).await.expect("recover")[0].pid;
    let other = other.expect("a pid");
    let mut crashed = vec![worker, other];
    break_it(other);
    adapter::Adapter::wait(&lab.adapter, &running.id).await.expect("wait");
    lab.stop(&running.id).await;
    crashed.extend(lab.zygotes());
    lab.zygotes().into_iter().for_each(crash_it);
    let launcher = lab.launcher;
    crash_it(launcher);
    crashed.push(launcher);
    until("the launcher ends", || !crate::drills::is_alive(launcher)).await;

    let before = fs::read_dir(&helper.notes).expect("there").count();
    assert!(helper.is_ready().await);
    for pid in crashed {
        assert!(!helper.has_run_for(pid), "a helper ran as root for process {pid}");
    }
    // The shell inside, whose number only the kernel knows, is not among them either: whatever else
    // crashes on this machine at this moment is.
    assert!(before <= 2, "{before} helpers");
    drop(helper);
    // Leaves the machine as it was.
    let config = crate::lab::config(lab.directory.path());
    adapter_sandbox::SandboxAdapter::start(config).await.expect("starts").shutdown().await;
    Outcome::Passed
}

/// Rust handles the signals of faults itself, but not this one, which leaves a dump as they do.
fn crash_it(pid: u32) {
    send(pid, Signal::ABORT);
}

/// Crashes the first process of a PID namespace, to whom the kernel passes on no signal that ends it:
/// where it waits, it finds no instruction.
fn break_it(pid: u32) {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).expect("root may look");
    let at = call.split_whitespace().last().and_then(|word| word.strip_prefix("0x"));
    let at = u64::from_str_radix(at.expect("it waits"), 16).expect("an address");
    let memory = fs::File::options().write(true).open(format!("/proc/{pid}/mem"));
    // The call itself, which is made again, and what follows it: UD2 twice, or UDF.
    let (nothing, before): (&[u8], u64) =
        if cfg!(target_arch = "x86_64") { (&[0x0F, 0x0B, 0x0F, 0x0B], 2) } else { (&[0; 8], 4) };
    memory.expect("root may write").write_all_at(nothing, at - before).expect("written");
    send(pid, Signal::STOP);
    send(pid, Signal::CONT);
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, signal).expect("it is there");
}
