//! Instances as plain processes of this machine: **no isolation**.
//!
//! For development on machines without namespaces. An instance sees what its user sees, memory and
//! processor limits are not enforced, and a function that writes to its code directory changes the
//! artifact. What does hold: an instance's whole process group is stopped with it, its environment
//! is the given one, and what a killed owner left behind is found by [`ProcessAdapter::start`].

use std::{
    collections::HashMap,
    fs, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitStatus as ProcessStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use adapter::{Adapter, AdapterError, Attaching};
use async_trait::async_trait;
use model::{Exit, ExitStatus, Instance, InstanceId, LaunchSpec, Limits, Network};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{process::Command, sync::watch, time::timeout};
use tracing::{info, warn};

const NAME: &str = "process";

/// How long a process that was killed may take to be gone. Then nobody waits for it any more: the
/// kernel can keep it for as long as a disk or a file server does not answer.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Runs instances as plain processes. See the crate's documentation for what that means.
pub struct ProcessAdapter {
    /// One file a process, for whoever cleans up after us.
    directory: PathBuf,
    processes: Arc<Mutex<HashMap<InstanceId, Process>>>,
}

struct Process {
    /// None while it is being started.
    pid: Option<Pid>,
    is_attached: bool,
    exit: watch::Sender<Option<Exit>>,
}

impl ProcessAdapter {
    /// An adapter that notes its processes in `directory`, which is made.
    ///
    /// Processes noted there by an owner that is gone are killed first, so no two adapters that
    /// live at the same time may share a directory.
    pub fn start(directory: PathBuf) -> io::Result<Self> {
        sweep(&directory)?;
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, processes: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Process>> {
        self.processes.lock().expect("no panic while the lock is held")
    }

    fn note(&self, id: &InstanceId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    fn spawn(
        &self,
        spec: &LaunchSpec,
        output: Option<OwnedFd>,
    ) -> Result<tokio::process::Child, AdapterError> {
        let server = spec.server.to_string_lossy();
        let mut words = spec.command.iter().map(|word| word.replace("{server}", &server));
        let program = words.next().unwrap_or_default();
        let failed = |step: &str, error| AdapterError::step(format!("{step} `{program}`"), error);
        let (stdout, stderr) = match output {
            Some(output) => {
                let copy = output.try_clone().map_err(|e| failed("give an output to", e))?;
                (Stdio::from(output), Stdio::from(copy))
            }
            None => (Stdio::null(), Stdio::null()),
        };
        let mut command = Command::new(&program);
        command
            .args(words)
            .env_clear()
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .envs(spec.socket.iter().map(|socket| (&socket.variable, &socket.path)))
            .current_dir(&spec.server)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0);
        command.spawn().map_err(|error| failed("start", error))
    }

    /// Writes down what `sweep` needs: the process, and when it started, since numbers are reused.
    fn remember(&self, id: &InstanceId, pid: Pid) -> io::Result<()> {
        let started = start_time(pid).unwrap_or_default();
        fs::write(self.note(id), format!("{} {started}", pid.as_raw_nonzero()))
    }
}

#[async_trait]
impl Adapter for ProcessAdapter {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_isolating(&self) -> bool {
        false
    }

    async fn launch(
        &self,
        spec: &LaunchSpec,
        output: Option<OwnedFd>,
    ) -> Result<Instance, AdapterError> {
        if spec.network != Network::Host {
            let instead = "ask for the network `host`, or use the adapter `sandbox`";
            return Err(AdapterError::no_network(NAME, spec.network, instead));
        }
        let ended = watch::Sender::new(None);
        {
            let mut processes = self.lock();
            if processes.contains_key(&spec.id) {
                return Err(AdapterError::Exists(spec.id.clone()));
            }
            let process = Process { pid: None, is_attached: false, exit: ended.clone() };
            processes.insert(spec.id.clone(), process);
        }
        let started = self.spawn(spec, output).inspect_err(|_| {
            self.lock().remove(&spec.id);
        });
        let mut child = started?;
        let raw = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = raw.expect("a child that was not waited for has a process id");
        if let Err(error) = self.remember(&spec.id, pid) {
            warn!(instance = %spec.id, %error, "could not note a process");
        }
        if let Some(process) = self.lock().get_mut(&spec.id) {
            process.pid = Some(pid);
        }
        tokio::spawn(async move {
            let status = child.wait().await;
            // Its children must not outlive it.
            let _ = kill_process_group(pid, Signal::KILL);
            ended.send_replace(Some(exit_of(status)));
        });
        Ok(Instance { id: spec.id.clone(), pid: u32::try_from(pid.as_raw_nonzero().get()).ok() })
    }

    async fn wait(&self, id: &InstanceId) -> Result<Exit, AdapterError> {
        let exit = self.lock().get(id).map(|process| process.exit.subscribe());
        let mut exit = exit.ok_or_else(|| AdapterError::Unknown(id.clone()))?;
        let ended = exit.wait_for(Option::is_some).await;
        Ok(ended.ok().and_then(|exit| *exit).unwrap_or(LOST))
    }

    async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), AdapterError> {
        let Some((pid, ended)) =
            self.lock().get(id).and_then(|process| Some((process.pid?, process.exit.clone())))
        else {
            return Ok(());
        };
        let mut exit = ended.subscribe();
        if !grace.is_zero() {
            let _ = kill_process_group(pid, Signal::TERM);
            let _ = timeout(grace, exit.wait_for(Option::is_some)).await;
        }
        if exit.borrow().is_none() {
            let _ = kill_process_group(pid, Signal::KILL);
            if timeout(END_PATIENCE, exit.wait_for(Option::is_some)).await.is_err() {
                warn!(instance = %id, "a killed process does not end: the kernel holds it up");
                ended.send_replace(Some(LOST));
            }
        }
        let _ = fs::remove_file(self.note(id));
        self.lock().remove(id);
        Ok(())
    }

    async fn recover(&self) -> Result<Vec<Instance>, AdapterError> {
        let processes = self.lock();
        let mut instances: Vec<_> = processes
            .iter()
            .map(|(id, process)| Instance {
                id: id.clone(),
                pid: process.pid.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()),
            })
            .collect();
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(instances)
    }

    fn attaching(&self) -> Option<&dyn Attaching> {
        Some(self)
    }
}

#[async_trait]
impl Attaching for ProcessAdapter {
    async fn attach(
        &self,
        id: &InstanceId,
        artifact: &Path,
        _limits: &Limits,
    ) -> Result<PathBuf, AdapterError> {
        let inside = fs::canonicalize(artifact)
            .map_err(|error| AdapterError::step(format!("find `{}`", artifact.display()), error));
        let mut processes = self.lock();
        let process = processes.get_mut(id).ok_or_else(|| AdapterError::Unknown(id.clone()))?;
        if process.is_attached {
            let again = io::Error::new(io::ErrorKind::AlreadyExists, "it has code already");
            return Err(AdapterError::step(format!("attach to `{id}`"), again));
        }
        let inside = inside?;
        process.is_attached = true;
        Ok(inside)
    }
}

const LOST: Exit = Exit { status: ExitStatus::Unknown, out_of_memory: false };

fn exit_of(status: io::Result<ProcessStatus>) -> Exit {
    let status = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, Some(signal)) => ExitStatus::Signal(signal),
            (None, None) => ExitStatus::Unknown,
        },
        Err(_) => ExitStatus::Unknown,
    };
    Exit { status, out_of_memory: false }
}

/// Kills the processes that are noted in a directory, and removes the notes.
pub fn sweep(directory: &Path) -> io::Result<()> {
    let notes = match fs::read_dir(directory) {
        Ok(notes) => notes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for note in notes {
        let path = note?.path();
        if let Some(pid) = noted_process(&path) {
            info!(process = %pid.as_raw_nonzero(), "killing what an earlier owner left behind");
            let _ = kill_process_group(pid, Signal::KILL);
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// The process of a note, if it is still the one that was noted.
fn noted_process(note: &Path) -> Option<Pid> {
    let text = fs::read_to_string(note).ok()?;
    let (pid, started) = text.split_once(' ')?;
    let pid = Pid::from_raw(pid.parse().ok()?)?;
    (start_time(pid)? == started.parse().ok()?).then_some(pid)
}

/// When a process started, in the kernel's own unit (proc_pid_stat(5), field 22).
fn start_time(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in field 2 may contain blanks and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}
