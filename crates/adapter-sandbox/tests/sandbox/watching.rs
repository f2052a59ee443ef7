//! What instances could see of each other, and of the host, through files that all have: who opens
//! and locks them.

use std::{fs, path::Path, process::Command};

use adapter::Adapter;
use model::{LaunchSpec, paths};
use rustix::{
    fs::{FlockOperation, flock},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::{
    Test,
    lab::{Lab, Outcome, id, is_root},
};

pub(crate) const TESTS: &[Test] = &[
    ("nobody_sees_what_others_open", |lab| Box::pin(nobody_sees_what_others_open(lab))),
    ("nobody_holds_locks_against_others", |lab| Box::pin(nobody_holds_locks_against_others(lab))),
    ("an_instance_can_watch_its_own_files", |lab| {
        Box::pin(an_instance_can_watch_its_own_files(lab))
    }),
    ("what_is_mounted_below_programs_is_shown", |lab| {
        Box::pin(what_is_mounted_below_programs_is_shown(lab))
    }),
    ("instances_work_where_overlays_are_refused", |lab| {
        Box::pin(instances_work_where_overlays_are_refused(lab))
    }),
];

/// What an instance sees that others see, too: there, and on the host.
fn shared(lab: &Lab) -> Vec<(String, String)> {
    let server = lab.directory.path().join("server").display().to_string();
    let artifact = lab.artifact().display().to_string();
    let mut shared = vec![
        (paths::SERVER.to_owned(), server.clone()),
        (format!("{}/src", paths::SERVER), format!("{server}/src")),
        (paths::CODE.to_owned(), artifact.clone()),
        (format!("{}/main.txt", paths::CODE), format!("{artifact}/main.txt")),
        (format!("{}/main.txt", paths::FUNCTION), format!("{artifact}/main.txt")),
    ];
    let mut same = vec![
        "/",
        "/usr",
        "/usr/bin",
        "/usr/bin/env",
        "/usr/bin/tail",
        "/usr/lib",
        "/usr/local",
        "/etc",
        "/etc/passwd",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/ssl/certs",
        "/etc/ld.so.cache",
        "/etc/alternatives",
        "/dev",
    ];
    if is_root() {
        same.extend(["/dev/null", "/dev/zero", "/dev/urandom"]);
    } else {
        println!("skipped: a part of watching: devices, which need root");
    }
    shared.extend(same.into_iter().map(|path| (path.to_owned(), path.to_owned())));
    shared.retain(|(_, host)| Path::new(host).exists());
    shared
}

/// Begins once it has its code; `paths` is given as an argument.
const BEGINNING: &str = "
import ctypes, json, os, select, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
while not os.path.exists('/usr/local/server/src/function/main.txt'): time.sleep(0.01)
# The last thing to be mounted covers the artifact itself.
for _ in range(300):
    if open('/proc/self/mounts').read().count(' /mnt/code ') == 2: break
    time.sleep(0.01)
paths = json.loads(sys.argv[1])
";

const WATCH: &str = "
watcher = libc.inotify_init1(os.O_NONBLOCK)
names = {}
for path in paths:
    watch = libc.inotify_add_watch(watcher, path.encode(), 0xfff)
    if watch < 0: print('cannot watch', path, ctypes.get_errno())
    names[watch] = path
def events():
    found = []
    while select.select([watcher], [], [], 0)[0]:
        data, at = os.read(watcher, 1 << 16), 0
        while at < len(data):
            watch, mask, _, length = struct.unpack_from('iIII', data, at)
            found.append(f'{names.get(watch)} {mask:x} {data[at + 16:at + 16 + length]}')
            at += 16 + length
    return found
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
events()
print('watching', flush=True)
signal.sigwait([signal.SIGUSR1])
print(json.dumps(events()), flush=True)
for path in paths:
    events()
    os.close(os.open(path, os.O_RDONLY))
    if not events(): print('cannot see its own', path)
print('seen', flush=True)
";

const LOCK: &str = "
import fcntl
refused, kept = [], []
for path in paths:
    kept.append(os.open(path, os.O_RDONLY))
    try: fcntl.flock(kept[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: refused.append(path)
print(json.dumps(refused), flush=True)
time.sleep(1000)
";

fn watching(lab: &Lab, name: &str, program: &str) -> Result<LaunchSpec, Outcome> {
    let mut spec = lab.python(name, &format!("{BEGINNING}{program}"))?;
    let inside: Vec<_> = shared(lab).into_iter().map(|(inside, _)| inside).collect();
    spec.command.push(serde_json::to_string(&inside).expect("text"));
    Ok(spec)
}

async fn attach(lab: &Lab, spec: &LaunchSpec) {
    let attaching = lab.adapter.attaching().expect("can attach");
    attaching.attach(&spec.id, &lab.artifact(), &spec.limits).await.expect("attach");
}

async fn nobody_sees_what_others_open(lab: Lab) -> Outcome {
    let spec = match watching(&lab, "watching", WATCH) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let mut output = lab.launch(&spec).await;
    attach(&lab, &spec).await;
    assert_eq!(output.line().await, "watching");
    let instances = lab.adapter.recover().await.expect("recover");
    let init = instances[0].pid.expect("has a process");
    let worker = lab.worker_of(init);

    for (_, path) in shared(&lab) {
        let _ = fs::read_dir(&path);
        if !path.starts_with("/dev") {
            let _ = fs::read(&path);
        } else {
            let _ = fs::File::open(&path);
        }
    }
    for program in ["/usr/bin/env", "/usr/bin/tail"] {
        Command::new(program).arg("--version").output().expect("runs");
    }
    let inside: Vec<_> = shared(&lab).into_iter().map(|(path, _)| path).collect();
    let script = format!(
        "until test -e src/function/main.txt; do sleep 0.01; done; ls -a {0}; tail -c 1 {0}; \
         env true",
        inside.join(" ")
    );
    let mut other = lab.script(&id("other"), &format!("({script}) >/tmp/out 2>&1; echo done"));
    other.limits.pids = 20;
    let mut said = lab.launch(&other).await;
    attach(&lab, &other).await;
    assert_eq!(said.line().await, "done");
    lab.stop(&other.id).await;

    let worker = worker.try_into().ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(worker, Signal::USR1).expect("signal");
    assert_eq!(output.line().await, "[]", "nothing of others");
    assert_eq!(output.line().await, "seen", "and its own");
    lab.stop(&spec.id).await;
    Outcome::Passed
}

async fn nobody_holds_locks_against_others(lab: Lab) -> Outcome {
    let mut outputs = Vec::new();
    for name in ["one", "two"] {
        let spec = match watching(&lab, name, LOCK) {
            Ok(spec) => spec,
            Err(skipped) => return skipped,
        };
        let mut output = lab.launch(&spec).await;
        attach(&lab, &spec).await;
        assert_eq!(output.line().await, "[]", "{name}");
        outputs.push((spec.id, output));
    }
    for (_, path) in shared(&lab) {
        let file = fs::File::open(&path).expect("open");
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    for (id, _) in outputs {
        lab.stop(&id).await;
    }
    Outcome::Passed
}

async fn an_instance_can_watch_its_own_files(lab: Lab) -> Outcome {
    const NODE: &str = "
        const fs = require('fs');
        const wait = setInterval(() => {
            const code = '/usr/local/server/src/function';
            if (!fs.existsSync(code + '/main.txt')) return;
            clearInterval(wait);
            let left = 2;
            for (const place of ['/tmp', code]) {
                const watcher = fs.watch(place, (event, name) => {
                    if (name !== 'new.txt') return;
                    watcher.close();
                    console.log('saw', name);
                });
                fs.writeFileSync(place + '/new.txt', 'new');
            }
        }, 10);";
    if !Path::new("/usr/bin/node").exists() {
        return Outcome::Skipped("no Node.js in /usr/bin".into());
    }
    let mut spec = lab.spec(&id("node"), &["/usr/bin/node", "-e", NODE]);
    spec.limits = model::Limits::default();
    let output = lab.launch(&spec).await;
    attach(&lab, &spec).await;
    lab.adapter.wait(&spec.id).await.expect("wait");
    lab.stop(&spec.id).await;
    assert_eq!(output.rest().await, "saw new.txt\nsaw new.txt\n");
    Outcome::Passed
}

/// Mounts of a test, which must not outlive it.
struct Mounts(Vec<std::path::PathBuf>);

impl Drop for Mounts {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

async fn what_is_mounted_below_programs_is_shown(lab: Lab) -> Outcome {
    if !is_root() {
        return Outcome::Skipped("only root mounts".into());
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p:r,{}", std::process::id()));
    if ["/usr", "/tmp"].iter().any(|taken| place.starts_with(taken)) {
        return Outcome::Skipped("built in /usr or /tmp".into());
    }
    let (below, file) = (place.join("a\\b e:l,o\\040w"), place.join("file"));
    fs::create_dir_all(&below).expect("a directory");
    fs::write(&file, "").expect("a file");
    let mut mounts = Mounts(Vec::new());
    mount("test", &below, "tmpfs", MountFlags::empty(), None).expect("mount");
    mounts.0.push(below.clone());
    fs::write(below.join("inner"), "shown").expect("a file");
    mount_bind(below.join("inner"), &file).expect("mount");
    mounts.0.push(file.clone());

    // A launcher sees what was mounted before it, whatever the host does with later mounts.
    let second = Lab::open().await.expect("a lab");
    let mut spec = second.spec(&id("mounts"), &[]);
    spec.programs = vec![place.clone()];
    spec.command = ["/bin/cat".into(), below.join("inner").display().to_string()]
        .into_iter()
        .chain([file.display().to_string()])
        .collect();
    assert_eq!(second.run(&spec).await.0, "shownshown");
    spec.command = ["/usr/bin/flock", "-n", &below.display().to_string(), "echo", "locked"]
        .map(str::to_owned)
        .into();
    let locked = fs::File::open(&below).expect("open");
    flock(&locked, FlockOperation::LockExclusive).expect("lock");
    assert_eq!(second.run(&spec).await.0, "locked\n");
    second.adapter.shutdown().await;
    lab.adapter.shutdown().await;
    drop(mounts);
    let _ = fs::remove_dir_all(&place);
    Outcome::Passed
}

/// The kernel stacks two overlays, and no more: over these nobody can have another.
async fn instances_work_where_overlays_are_refused(lab: Lab) -> Outcome {
    const STACK: &str = "set -e; mount --make-rprivate /; mount -t tmpfs none /mnt; \
        mkdir /mnt/empty /mnt/one /mnt/two; \
        mount -t overlay none -o lowerdir=/mnt/empty:/usr /mnt/one; \
        mount -t overlay none -o lowerdir=/mnt/empty:/mnt/one /usr; exec \"$0\" __launcher";
    if !is_root() {
        return Outcome::Skipped("only root mounts".into());
    }
    lab.adapter.shutdown().await;
    let lab = Lab::open_through(STACK).await.expect("works all the same");
    let weaknesses = lab.adapter.weaknesses();
    assert!(weaknesses.iter().any(|weakness| weakness.contains("no overlays")), "{weaknesses:?}");
    let script = "until test -e src/function/main.txt; do sleep 0.01; done; cat src/function/main.txt; \
        echo; ls -d /usr/bin/env /etc/passwd /usr/local/server/src; echo x > src/function/new.txt; \
        echo x >/dev/null && echo fine";
    let spec = lab.script(&id("shared"), script);
    let output = lab.launch(&spec).await;
    attach(&lab, &spec).await;
    lab.adapter.wait(&spec.id).await.expect("wait");
    lab.stop(&spec.id).await;
    let expected = "as built\n/etc/passwd\n/usr/bin/env\n/usr/local/server/src\nfine\n";
    assert_eq!(output.rest().await, expected);
    lab.adapter.shutdown().await;
    Outcome::Passed
}
