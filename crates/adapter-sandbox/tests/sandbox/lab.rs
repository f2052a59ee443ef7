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
use model::{Exit, InstanceId, LaunchSpec, Limits, Network};

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
}

impl Lab {
    pub(crate) async fn open() -> Result<Self, String> {
        Self::open_in(Directory::new()).await
    }

    pub(crate) async fn open_in(directory: Directory) -> Result<Self, String> {
        let function = directory.path().join("server/src/function");
        fs::create_dir_all(function).expect("a runtime");
        fs::create_dir(directory.path().join("artifact")).expect("an artifact");
        fs::write(directory.path().join("artifact/main.txt"), "as built").expect("an artifact");
        let adapter = SandboxAdapter::start(config(directory.path())).await;
        let adapter = adapter.map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })?;
        Ok(Self { adapter, directory })
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
        self.adapter.launch(spec, Some(writer.into())).await.expect("launch");
        Output(reader)
    }

    pub(crate) async fn stop(&self, id: &InstanceId) {
        self.adapter.stop(id, Duration::ZERO).await.expect("stop");
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
        let python = ["/usr/bin/python3.11", "/usr/bin/python3"];
        match python.into_iter().find(|path| Path::new(path).exists()) {
            Some(path) => Ok(self.spec(&id(name), &[path, "-I", "-S", "-c", program])),
            None => Err(Outcome::Skipped("no Python in /usr/bin".into())),
        }
    }

    /// A specification that runs a shell script.
    pub(crate) fn script(&self, id: &InstanceId, script: &str) -> LaunchSpec {
        self.spec(id, &["/bin/sh", "-c", script])
    }

    pub(crate) fn spec(&self, id: &InstanceId, command: &[&str]) -> LaunchSpec {
        LaunchSpec {
            id: id.clone(),
            command: command.iter().map(|&argument| argument.to_owned()).collect(),
            environment: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
            server: self.directory.path().join("server"),
            programs: Vec::new(),
            limits: Limits::with_memory(64 << 20),
            network: Network::None,
            socket: None,
        }
    }
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
