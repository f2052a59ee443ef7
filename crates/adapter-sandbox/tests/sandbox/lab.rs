//! What tests share: an adapter in a directory of its own, and a runtime to launch.

use std::{
    fs,
    path::{Path, PathBuf},
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
};

use adapter_sandbox::{Config, SandboxAdapter};
use model::{InstanceId, LaunchSpec, Limits, Network};

pub(crate) type Future = Pin<Box<dyn std::future::Future<Output = Outcome>>>;

/// How a test ended, if it did not fail.
pub(crate) enum Outcome {
    Passed,
    Skipped(String),
}

/// A directory that is removed with its owner.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hearth-sandbox-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a new directory");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An adapter with what it launches.
pub(crate) struct Lab {
    pub(crate) adapter: SandboxAdapter,
    pub(crate) directory: Directory,
}

impl Lab {
    pub(crate) async fn open() -> Result<Self, String> {
        let directory = Directory::new();
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

    pub(crate) fn artifact(&self) -> PathBuf {
        self.directory.path().join("artifact")
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

pub(crate) fn config(directory: &Path) -> Config {
    let launcher = vec!["/proc/self/exe".into(), "__launcher".into()];
    Config::new(directory.join("state"), launcher)
}
