//! Whether instances work on this machine: found out by launching one.
//!
//! A container can lack what no question to the kernel tells, such as the right to mount `/proc`. A
//! daemon that listened all the same would fail every deployment instead.

use std::{fs, io, path::Path, time::Duration};

use adapter::{Adapter, AdapterError};
use model::{LaunchSpec, Limits, Network};
use tokio::time::timeout;

use crate::{
    exit::{Failure, Fatal},
    runtimes::SYSTEM_PATH,
};

/// How long the trial may take. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that every host has: install steps need it, too.
const SHELL: &str = "/bin/sh";

/// Launches an instance, gives it code and ends it, in a directory of its own.
pub(crate) async fn run(
    adapter: &dyn Adapter,
    directory: &Path,
    network: Network,
) -> Result<(), AdapterError> {
    let step = |error| AdapterError::step("prepare a trial", error);
    let (server, code) = (directory.join("server"), directory.join("code"));
    fs::create_dir_all(server.join("src/function")).map_err(step)?;
    fs::create_dir_all(&code).map_err(step)?;
    let spec = LaunchSpec {
        id: "trial".parse().expect("a plain name"),
        // It stops itself, and so is there until it is ended.
        command: vec![SHELL.into(), "-c".into(), "kill -STOP $$".into()],
        zygote: None,
        environment: vec![("PATH".into(), SYSTEM_PATH.into())],
        server,
        programs: Vec::new(),
        limits: Limits::default(),
        network,
        socket: None,
    };
    let tried = async {
        adapter.launch(&spec, None).await?;
        if let Some(attaching) = adapter.attaching() {
            attaching.attach(&spec.id, &code, &spec.limits).await?;
        }
        Ok(())
    };
    let late =
        || AdapterError::step("launch an instance", io::Error::from(io::ErrorKind::TimedOut));
    let outcome = timeout(PATIENCE, tried).await.unwrap_or_else(|_| Err(late()));
    let stopped = adapter.stop(&spec.id, Duration::ZERO).await;
    let _ = fs::remove_dir_all(directory);
    outcome.and(stopped)
}

/// What to say where the sandbox does not work, and what to do.
pub(crate) fn failure(error: AdapterError) -> Fatal {
    let mut message = format!("no sandbox works on this machine: {:#}", anyhow::Error::new(error));
    // Its attempts make system calls only, so a second thread does not matter.
    for finding in adapter_sandbox::probe().lacking() {
        message += &format!("; without {}: {}", finding.what, finding.remedy);
    }
    message += "; `hearth doctor` says more, `--adapter process` runs functions without isolation";
    Fatal::new(Failure::Unavailable, message)
}
