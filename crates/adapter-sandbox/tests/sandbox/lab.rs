//! What tests share: an adapter in a directory of its own, and a runtime to launch.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use adapter::Adapter;
use adapter_sandbox::{Config, SandboxAdapter};
use model::{Exit, InstanceId, LaunchSpec, Limits, Network, paths};

pub(crate) type Future = Pin<Box<dyn std::future::Future<Output = Outcome>>>;

/// How a test ended, if it did not fail.
pub(crate) enum Outcome {
    Passed,
    Skipped(String),
}

/// A directory that is removed with its owner.
pub(crate) struct Directory {
    path: PathBuf,
    is_ours: bool,
}

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hearth-sandbox-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a new directory");
        Self { path, is_ours: true }
    }

    /// Somebody else's.
    pub(crate) fn of(path: &str) -> Self {
        Self { path: path.into(), is_ours: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// An adapter with what it launches.
pub(crate) struct Lab {
    pub(crate) adapter: SandboxAdapter,
    pub(crate) directory: Directory,
    pub(crate) launcher: u32,
    /// What forks the workers, if they are to be forked.
    zygote: Option<Vec<String>>,
}

/// Tells a forked worker of the tests what to be.
const COMMAND: &str = "HEARTH_TEST_COMMAND";

/// What a zygote of the tests runs. Programs in Python are run where they are, all others replace
/// the worker.
const ZYGOTE: &str = "
import json, os, sys
sys.path.insert(0, '/usr/local/server/zygote')
from hearth_worker import zygote
sys.path.pop(0)
zygote.serve()
command = json.loads(os.environ.pop('HEARTH_TEST_COMMAND'))
if '-c' in command and 'python' in command[0]:
    at = command.index('-c') + 1
    sys.argv[:] = ['-c', *command[at + 1:]]
    exec(compile(command[at], 'program', 'exec'), {'__name__': '__main__'})
else:
    os.execv(command[0], command)
";

impl Lab {
    pub(crate) async fn open() -> Result<Self, String> {
        Self::open_in(Directory::new()).await
    }

    /// One whose workers are forked.
    pub(crate) async fn open_with_zygote() -> Result<Self, String> {
        Self::open().await?.with_zygote().await
    }

    /// The same, whose workers are forked from now on.
    async fn with_zygote(mut self) -> Result<Self, String> {
        let python = python().ok_or("no Python in /usr/bin")?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtimes/python/src");
        let package = self.directory.path().join("server/zygote/hearth_worker");
        fs::create_dir_all(&package).expect("a package");
        for file in fs::read_dir(source.join("hearth_worker")).expect("the worker").flatten() {
            if file.path().is_file() {
                fs::copy(file.path(), package.join(file.file_name())).expect("a copy");
            }
        }
        let program = self.directory.path().join("server/zygote/main.py");
        fs::write(program, ZYGOTE).expect("a program");
        let words = [python, "-I", "-S", "-X", "utf8", "{server}/zygote/main.py"];
        self.zygote = Some(words.map(Into::into).into());
        self.forks().await;
        Ok(self)
    }

    pub(crate) fn has_zygote(&self) -> bool {
        self.zygote.is_some()
    }

    /// Waits until workers are forked.
    pub(crate) async fn forks(&self) {
        self.forks_like(&self.spec(&id("trial"), &[])).await;
    }

    /// Waits until workers of this kind are forked.
    pub(crate) async fn forks_like(&self, spec: &LaunchSpec) {
        let sleep = ["/bin/sleep", "1000"].map(Into::into).into();
        let spec = LaunchSpec { id: id("trial"), command: sleep, ..spec.clone() };
        for attempt in 0.. {
            let _output = self.launch(&spec).await;
            let forked = self.forked().len();
            self.stop(&spec.id).await;
            if forked > 0 {
                return;
            }
            assert!(attempt < 100, "never forks");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn open_in(directory: Directory) -> Result<Self, String> {
        Self::open_with(directory, |_| {}).await
    }

    /// One whose launcher is started by a shell command, which must end with `exec "$0" __launcher`.
    pub(crate) async fn open_through(command: &str) -> Result<Self, String> {
        let launcher = std::env::current_exe().expect("this program");
        let words = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", command];
        let launcher = words.into_iter().map(Into::into).chain([launcher.into()]).collect();
        Self::open_with(Directory::new(), |config| config.launcher = launcher).await
    }

    /// Another one, with workers that begin like this one's.
    pub(crate) async fn another(&self, change: impl FnOnce(&mut Config)) -> Result<Self, String> {
        let another = Self::open_with(Directory::new(), change).await?;
        if self.zygote.is_some() { another.with_zygote().await } else { Ok(another) }
    }

    async fn open_with(
        directory: Directory,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self, String> {
        let function = directory.path().join("server/src/function");
        fs::create_dir_all(function).expect("a runtime");
        fs::create_dir(directory.path().join("artifact")).expect("an artifact");
        fs::write(directory.path().join("artifact/main.txt"), "as built").expect("an artifact");
        let others = children(std::process::id());
        let mut config = config(directory.path());
        change(&mut config);
        let adapter = SandboxAdapter::start(config).await;
        let adapter = adapter.map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })?;
        let launcher = children(std::process::id()).into_iter().find(|pid| !others.contains(pid));
        let launcher = launcher.expect("a child of this process");
        Ok(Self { adapter, directory, launcher, zygote: None })
    }

    /// Runs an instance to its end. What it wrote, and how it ended.
    pub(crate) async fn run(&self, spec: &LaunchSpec) -> (String, Exit) {
        let output = self.launch(spec).await;
        let exit = self.adapter.wait(&spec.id).await.expect("wait");
        self.stop(&spec.id).await;
        (output.rest().await, exit)
    }

    /// Launches an instance whose output is read.
    pub(crate) async fn launch(&self, spec: &LaunchSpec) -> Output {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut spec = spec.clone();
        spec.environment.retain(|(name, _)| name != COMMAND);
        spec.environment.extend(spec.zygote.iter().map(|_| command_variable(&spec.command)));
        self.adapter.launch(&spec, Some(writer.into())).await.expect("launch");
        Output(reader)
    }

    pub(crate) async fn stop(&self, id: &InstanceId) {
        self.adapter.stop(id, Duration::ZERO).await.expect("stop");
    }

    /// The workers that are forked.
    pub(crate) fn forked(&self) -> Vec<u32> {
        let is_inside = |pid: &u32| status(*pid, "NSpid").split_whitespace().nth(1) == Some("2");
        children(self.launcher).into_iter().filter(is_inside).collect()
    }

    /// The zygotes that run.
    pub(crate) fn zygotes(&self) -> Vec<u32> {
        let is_outside = |pid: &u32| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.contains("zygote") && status(*pid, "NSpid").split_whitespace().count() == 1
        };
        children(self.launcher).into_iter().filter(is_outside).collect()
    }

    /// The worker of an instance, whoever has started it.
    pub(crate) fn worker_of(&self, init: u32) -> u32 {
        children(init).into_iter().chain(self.forked()).next().expect("a worker")
    }

    /// Whether limits are kept by cgroups.
    pub(crate) fn has_groups(&self) -> bool {
        !self.adapter.weaknesses().iter().any(|weakness| weakness.contains("cgroups"))
    }

    pub(crate) fn artifact(&self) -> PathBuf {
        self.directory.path().join("artifact")
    }

    /// A specification that runs a Python program, or a reason to skip.
    pub(crate) fn python(&self, name: &str, program: &str) -> Result<LaunchSpec, Outcome> {
        match python() {
            Some(path) => Ok(self.spec(&id(name), &[path, "-I", "-S", "-c", program])),
            None => Err(Outcome::Skipped("no Python in /usr/bin".into())),
        }
    }

    /// A specification that runs a shell script.
    pub(crate) fn script(&self, id: &InstanceId, script: &str) -> LaunchSpec {
        self.spec(id, &["/bin/sh", "-c", script])
    }

    pub(crate) fn spec(&self, id: &InstanceId, command: &[&str]) -> LaunchSpec {
        let command: Vec<_> = command.iter().map(|&argument| argument.to_owned()).collect();
        let path = ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into());
        let told = self.zygote.iter().map(|_| command_variable(&command));
        LaunchSpec {
            id: id.clone(),
            zygote: self.zygote.clone(),
            environment: [path].into_iter().chain(told).collect(),
            command,
            server: self.directory.path().join("server"),
            programs: Vec::new(),
            limits: Limits::with_memory(64 << 20),
            network: Network::None,
            socket: None,
        }
    }
}

fn python() -> Option<&'static str> {
    let python = ["/usr/bin/python3.11", "/usr/bin/python3"];
    python.into_iter().find(|path| Path::new(path).exists())
}

fn command_variable(command: &[String]) -> (String, String) {
    let words: Vec<_> =
        command.iter().map(|word| word.replace("{server}", paths::SERVER)).collect();
    (COMMAND.into(), serde_json::to_string(&words).expect("text"))
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

/// A line of a process's status.
pub(crate) fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_default().trim().to_owned()
}

/// The reading end of an instance's output.
pub(crate) struct Output(std::io::PipeReader);

impl Output {
    /// The next line, without its end.
    pub(crate) async fn line(&mut self) -> String {
        let mut reader = self.0.try_clone().expect("a duplicate");
        let read = move || {
            let mut line = Vec::new();
            let mut byte = [0];
            while reader.read(&mut byte).expect("read") == 1 && byte[0] != b'\n' {
                line.push(byte[0]);
            }
            String::from_utf8(line).expect("text")
        };
        tokio::task::spawn_blocking(read).await.expect("no panic")
    }

    /// Everything up to its end, which comes with the last writer's.
    pub(crate) async fn rest(mut self) -> String {
        let read = move || {
            let mut text = String::new();
            self.0.read_to_string(&mut text).expect("text");
            text
        };
        tokio::task::spawn_blocking(read).await.expect("no panic")
    }
}

pub(crate) fn id(text: &str) -> InstanceId {
    text.parse().expect("a valid id")
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits for something that must come true soon.
pub(crate) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is_true() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never came true: {what}");
}

pub(crate) fn config(directory: &Path) -> Config {
    let launcher = vec!["/proc/self/exe".into(), "__launcher".into()];
    Config::new(directory.join("state"), launcher)
}
