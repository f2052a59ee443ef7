//! Everything a benchmark starts and writes, so that all of it can be taken away again.
//!
//! Servers are process groups. One is stopped when its [`Server`] is dropped, and all of them by
//! [`Stage::clear`], which is what an interrupted benchmark calls.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid};
use tokio::time::Instant;

/// How long a stopped server may take to end politely.
const GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);
/// The search path of everything that is measured, and all of its environment.
pub(crate) const SEARCH_PATH: &str = "/usr/bin:/bin";

/// The processes and files of one benchmark.
#[derive(Debug)]
pub(crate) struct Stage {
    directory: PathBuf,
    /// The same in memory, where the machine has such a place.
    memory: Option<PathBuf>,
    groups: Mutex<Groups>,
}

#[derive(Debug, Default)]
struct Groups {
    running: HashSet<Pid>,
    /// Whoever starts something now is too late.
    is_cleared: bool,
}

impl Stage {
    /// A stage with an empty directory for sockets, logs and bundles.
    pub(crate) fn new(directory: PathBuf) -> anyhow::Result<Arc<Self>> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("create `{}`", directory.display()))?;
        let memory = Path::new("/dev/shm").join(format!("hearth-bench-{}", std::process::id()));
        let memory = fs::create_dir(&memory).is_ok().then_some(memory);
        Ok(Arc::new(Self { directory, memory, groups: Mutex::default() }))
    }

    /// Where a benchmark may write; gone when it is over.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The same in memory; on disk where there is no such place.
    pub(crate) fn memory(&self) -> &Path {
        self.memory.as_deref().unwrap_or(&self.directory)
    }

    /// Starts a server in its own process group, with nothing in its environment but a search path
    /// and what `command` sets itself. Standard error goes to a file named after `name`.
    pub(crate) fn start(self: &Arc<Self>, name: &str, command: Command) -> anyhow::Result<Server> {
        let log = self.directory.join(format!("{name}.stderr"));
        let mut command = isolated(command);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(&log).with_context(|| format!("create `{}`", log.display()))?);

        let mut groups = self.groups();
        if groups.is_cleared {
            bail!("interrupted");
        }
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let group = Pid::from_child(&child);
        groups.running.insert(group);
        drop(groups);

        let lines = child.stdout.take().map(follow).context("standard output is a pipe")?;
        Ok(Server { child, group, lines, log, stage: Arc::clone(self) })
    }

    /// Ends every server and removes the directory. Nothing can be started afterwards. A second
    /// caller waits for the first.
    pub(crate) fn clear(&self) {
        let mut groups = self.groups();
        groups.is_cleared = true;
        let running = std::mem::take(&mut groups.running);
        for group in &running {
            signal(*group, Signal::TERM);
        }
        let deadline = Instant::now() + GRACE;
        while running.iter().any(|group| is_alive(*group)) && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        for group in &running {
            signal(*group, Signal::KILL);
        }
        // Logs and sockets of an ended benchmark in the build directory do no harm.
        let _ = fs::remove_dir_all(&self.directory);
        if let Some(memory) = &self.memory {
            let _ = fs::remove_dir_all(memory);
        }
    }

    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Takes the environment away, except what `command` sets itself.
pub(crate) fn isolated(mut command: Command) -> Command {
    let own: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command.env_clear().env("PATH", SEARCH_PATH).envs(own);
    command
}

fn signal(group: Pid, signal: Signal) {
    // A group that is gone already is what was wanted.
    let _ = kill_process_group(group, signal);
}

/// Whether any process of a group is left, after taking note of one that has ended.
fn is_alive(group: Pid) -> bool {
    let _ = waitpgid(group, WaitOptions::NOHANG);
    rustix::process::test_kill_process_group(group).is_ok()
}

/// Passes lines on, and keeps reading when nobody listens any more so that the writer never waits.
fn follow(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    group: Pid,
    lines: mpsc::Receiver<String>,
    log: PathBuf,
    stage: Arc<Stage>,
}

impl Server {
    /// The process that was started.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of output that starts with `prefix`, and returns what follows it.
    pub(crate) fn expect_line(
        &mut self,
        prefix: &str,
        patience: Duration,
    ) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return Ok(rest.to_owned());
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    bail!("said no `{prefix}` within {patience:?}{}", self.last_words())
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    bail!("ended before it was ready{}", self.last_words())
                }
            }
        }
    }

    /// Tries until `attempt` succeeds, the server has ended or patience is over.
    pub(crate) fn wait_for<T>(
        &mut self,
        patience: Duration,
        mut attempt: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("not ready{}", self.last_words())));
                }
                Err(_) if self.child.try_wait().is_ok_and(|status| status.is_some()) => {
                    bail!("ended before it was ready{}", self.last_words())
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    /// The last line of standard error, as the end of a message.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().find(|line| !line.trim().is_empty()).map_or_else(
            || ", without a word on standard error".to_owned(),
            |line| format!(": {}", line.trim()),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal(self.group, Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            // An error says that `Stage::clear` has already taken note of its end.
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(POLL);
        }
        // What the leader left behind, or the leader itself if it would not end.
        signal(self.group, Signal::KILL);
        // Until it is waited for, nobody else can have got its number.
        self.stage.groups().running.remove(&self.group);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn stage() -> Arc<Stage> {
        static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("hearth-bench-test-{}-{serial}", std::process::id());
        Stage::new(std::env::temp_dir().join(name)).expect("stage")
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_dropped_server_takes_its_whole_group_along() {
        let stage = stage();
        let script = "sleep 1000 & echo started; trap '' TERM; wait; sleep 1000";
        let mut server = stage.start("stubborn", shell(script)).expect("started");
        server.expect_line("started", PATIENCE).expect("said so");
        let group = server.group;
        assert!(is_alive(group));
        drop(server);
        // Killed members are gone once their new parent has seen it.
        let deadline = Instant::now() + PATIENCE;
        while is_alive(group) {
            assert!(Instant::now() < deadline, "something of the group is left");
            thread::sleep(POLL);
        }
    }

    #[test]
    fn clearing_ends_servers_and_refuses_new_ones() {
        let stage = stage();
        let mut server = stage.start("quiet", shell("sleep 1000")).expect("started");
        stage.clear();
        assert!(!is_alive(server.group));
        assert!(!server.child.try_wait().is_ok_and(|status| status.is_none()));
        assert!(!stage.directory().exists());
        assert!(stage.start("late", shell("true")).is_err());
    }

    #[test]
    fn a_server_gets_only_the_environment_it_was_given() {
        let mut command = shell("echo env $(env | cut -d= -f1 | sort | tr '\\n' ' ')");
        command.env("OWN", "1");
        let stage = stage();
        let mut server = stage.start("env", command).expect("started");
        let names = server.expect_line("env ", PATIENCE).expect("said so");
        let names: Vec<_> = names.split_whitespace().collect();
        // The shell adds its own three.
        let unexpected: Vec<_> = names
            .iter()
            .filter(|name| !["OWN", "PATH", "PWD", "SHLVL", "_", "OLDPWD"].contains(name))
            .collect();
        assert_eq!(unexpected, Vec::<&&str>::new());
        assert!(names.contains(&"OWN"));
    }

    #[test]
    fn the_reason_for_not_starting_is_passed_on() {
        let stage = stage();
        let script = "echo 'port taken' >&2; exit 1";
        let mut server = stage.start("broken", shell(script)).expect("started");
        let error = server.expect_line("ready", PATIENCE).expect_err("never ready");
        assert!(error.to_string().contains("port taken"), "{error}");
    }
}
