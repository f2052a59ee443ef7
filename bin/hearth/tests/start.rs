//! What happens at a start: where nothing can work, and where this is the first process.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

const HEARTH: &str = env!("CARGO_BIN_EXE_hearth");
const NOBODY: u32 = 65534;

/// A directory that goes with the test, and that everybody may write.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        use fs::Permissions;
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("hearth-start-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a new directory");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("open");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("plain")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Why there are no namespaces to try it in, if there are none.
fn cannot_unshare(flags: &[&str]) -> bool {
    let tried = Command::new("unshare").args(flags).args(["--mount", "true"]).output();
    let works = tried.is_ok_and(|output| output.status.success());
    if !works {
        println!("skipped: unshare {flags:?} does not work here");
    }
    !works
}

/// Where a machine is made worse by a script, which then becomes the program.
struct Place {
    unshare: &'static [&'static str],
    worsen: &'static str,
    says: &'static str,
    user: Option<u32>,
}

impl Place {
    fn run(&self, folder: &Folder, arguments: &[&str]) -> Output {
        let script = format!("{} && exec \"$@\"", self.worsen);
        let mut command = Command::new("unshare");
        command.args(self.unshare).args(["--mount", "sh", "-c", &script, "sh", HEARTH]);
        command.args(arguments).current_dir("/").stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", folder.path()).env("HOME", folder.path());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command.output().expect("the program runs")
    }
}

#[test]
fn a_start_that_cannot_work_ends_with_69_and_says_what_to_do() {
    // A network of its own, as a container has it.
    let mut places = vec![
        // As a container's /proc, which has parts covered: the kernel shows no new one then.
        Place {
            unshare: &["--map-root-user", "--net"],
            worsen: "mount -t tmpfs a /run && mount -t tmpfs b /var/lib && mount --bind /dev/null /proc/version",
            says: "private /proc",
            user: (is_root()).then_some(NOBODY),
        },
        Place {
            unshare: &["--map-root-user", "--net"],
            worsen: "mount -t tmpfs a /run && mount -t tmpfs b /var/lib && echo 0 > /proc/sys/user/max_user_namespaces",
            says: "namespaces",
            user: (is_root()).then_some(NOBODY),
        },
    ];
    if is_root() {
        places.push(Place {
            unshare: &["--uts"],
            worsen: "mount --bind /dev/null /proc/version",
            says: "mount /proc",
            user: None,
        });
    }
    for place in places.iter().filter(|place| !cannot_unshare(place.unshare)) {
        let folder = Folder::new("worse");
        let source = folder.0.join("source");
        fs::create_dir(&source).expect("a directory");
        fs::write(source.join("main.py"), "def main(context): pass").expect("a function");
        let data = folder.0.join("data");
        let data = data.to_str().expect("plain");
        let up = place.run(&folder, &["up", "--listen", "127.0.0.1:0", "--data", data]);
        let source = source.to_str().expect("plain");
        let serve = place.run(&folder, &["serve", source, "--listen", "127.0.0.1:0"]);
        for output in [up, serve] {
            let (said, errors) = (text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(69), "{}: {said} {errors}", place.worsen);
            assert!(!said.contains("listening"), "{said}");
            assert!(errors.contains(place.says), "the step: {errors}");
            assert!(errors.contains("hearth doctor"), "what to do: {errors}");
        }
        let doctor = place.run(&folder, &["doctor"]);
        assert_eq!(doctor.status.code(), Some(69), "{}", text(&doctor.stdout));
        assert!(text(&doctor.stdout).contains("missing"), "{}", text(&doctor.stdout));
    }
}

#[test]
fn a_doctor_that_finds_enough_has_launched_one() {
    let output = Command::new(HEARTH).arg("doctor").output().expect("runs");
    let said = text(&output.stdout);
    if output.status.success() {
        assert!(said.contains("ok       an instance\n"), "{said}");
    } else {
        assert_eq!(output.status.code(), Some(69), "{said}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A daemon as the first process of a PID namespace.
struct First {
    unshare: Child,
    /// Its number outside.
    first: u32,
    /// Kept open, for it goes on to speak.
    _output: BufReader<ChildStdout>,
}

impl First {
    fn start(folder: &Folder) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", HEARTH, "up"]);
        command.args(["--listen", "127.0.0.1:0", "--data"]).arg(folder.0.join("data"));
        let mut unshare = command.stdout(Stdio::piped()).spawn().expect("starts");
        let output = unshare.stdout.take().expect("piped");
        let mut line = String::new();
        let mut output = BufReader::new(output);
        output.read_line(&mut line).expect("speaks");
        assert!(line.starts_with("listening"), "{line}");
        let [first] = children(unshare.id())[..] else { panic!("one child") };
        Self { unshare, first, _output: output }
    }

    fn daemon(&self) -> u32 {
        children(self.first)[0]
    }

    /// A process inside whose parent ends before it does.
    fn leave_an_orphan(&self) {
        let first = self.first.to_string();
        let script = "sleep 0.2 & exit 0";
        let status = Command::new("nsenter")
            .args(["-t", &first, "--pid", "--mount", "setsid", "sh", "-c", script])
            .status();
        assert!(status.expect("enters").success());
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(status.expect("runs").success());
}

fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_true() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("never came true: {what}");
}

#[test]
fn the_first_process_collects_orphans_and_ends_as_its_daemon() {
    if !is_root() || cannot_unshare(&["--pid", "--fork"]) || !Path::new("/usr/bin/nsenter").exists()
    {
        println!("skipped: no PID namespace to be first in");
        return;
    }
    let folder = Folder::new("first");
    let mut first = First::start(&folder);
    let daemon = first.daemon();
    first.leave_an_orphan();
    until("only the daemon is left", || children(first.first) == [daemon]);

    // A launcher that is killed leaves zygotes and inits behind, which end with it.
    signal(children(daemon)[0], "-KILL");
    first.leave_an_orphan();
    until("only the daemon is left", || children(first.first) == [daemon]);

    signal(first.first, "-TERM");
    assert_eq!(first.unshare.wait().expect("an end").code(), Some(0));
}

#[test]
fn the_first_process_waits_for_what_a_killed_daemon_leaves() {
    if !is_root() || cannot_unshare(&["--pid", "--fork"]) {
        println!("skipped: no PID namespace to be first in");
        return;
    }
    let folder = Folder::new("killed");
    let mut first = First::start(&folder);
    let daemon = first.daemon();
    let launcher = children(daemon)[0];
    signal(launcher, "-STOP");
    signal(daemon, "-KILL");
    until("the launcher has another parent", || children(first.first).contains(&launcher));
    assert!(first.unshare.try_wait().expect("a child").is_none(), "the launcher is to clean up");
    signal(launcher, "-CONT");
    assert_eq!(first.unshare.wait().expect("an end").code(), Some(137));
}
