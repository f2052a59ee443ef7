//! Waiting for a worker to connect.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use model::{InstanceId, InstanceSocket, LaunchSpec};
use protocol::{CallLog, ConnectError, Connection, Protocol};
use tokio::net::{UnixListener, UnixStream};

use crate::connection::{Channel, Shared};

/// The environment variable that names the socket to a worker.
const SOCKET_VARIABLE: &str = "HEARTH_SOCKET";

/// Where the log entries of an instance go that belong to no call. Must bear a flood.
pub type InstanceLogs = Arc<dyn Fn(&InstanceId) -> Arc<dyn CallLog> + Send + Sync>;

/// How the host's end behaves.
#[derive(Clone)]
pub struct WorkerConfig {
    /// Where sockets are made, one directory an instance. Should be closed to other users: inside,
    /// the sockets themselves are open to everybody, since an instance's user differs from ours.
    pub directory: PathBuf,
    /// How long a launched worker may take to say hello.
    pub hello_timeout: Duration,
    /// How long a worker may take to answer a cancel after a deadline, before it is given up.
    pub patience: Duration,
    /// Where log entries go that belong to no call.
    pub instance_logs: InstanceLogs,
}

/// Hearth's own protocol. See the crate's documentation.
pub struct WorkerProtocol {
    config: WorkerConfig,
}

impl WorkerProtocol {
    /// A protocol whose sockets are made below `config.directory`, which must exist.
    pub fn new(config: WorkerConfig) -> Self {
        Self { config }
    }
}

impl Protocol for WorkerProtocol {
    /// Must be called within a tokio runtime.
    fn prepare(&self, spec: &mut LaunchSpec) -> Result<Arc<dyn Connection>, ConnectError> {
        let socket = Socket::create(&self.config.directory, &spec.id)
            .map_err(|error| ConnectError { why: format!("could not make its socket: {error}") })?;
        spec.socket =
            Some(InstanceSocket { variable: SOCKET_VARIABLE.into(), path: socket.path.clone() });
        let log = (self.config.instance_logs)(&spec.id);
        let shared = Shared::new(self.config.patience, log);
        let accepting = tokio::spawn(accept(socket, shared.clone(), self.config.hello_timeout));
        shared.on_close(accepting.abort_handle());
        Ok(Arc::new(Channel::new(shared)))
    }
}

/// A listening socket in a directory of its own; dropping it removes both.
struct Socket {
    directory: PathBuf,
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn create(parent: &Path, id: &InstanceId) -> std::io::Result<Self> {
        let directory = parent.join(id.as_str());
        fs::create_dir(&directory)?;
        let path = directory.join("worker.sock");
        let made = fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
            .and_then(|()| UnixListener::bind(&path))
            .and_then(|listener| {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map(|()| listener)
            });
        match made {
            Ok(listener) => Ok(Self { directory, path, listener }),
            Err(error) => {
                remove(&directory, &path);
                Err(error)
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        remove(&self.directory, &self.path);
    }
}

fn remove(directory: &Path, socket: &Path) {
    // Nothing depends on either being gone; what is left goes with the state directory.
    let _ = fs::remove_file(socket);
    let _ = fs::remove_dir(directory);
}

/// Takes one connection, and no other ever after.
async fn accept(socket: Socket, shared: Arc<Shared>, hello_timeout: Duration) {
    let expired = tokio::time::sleep(hello_timeout);
    tokio::pin!(expired);
    let stream: std::io::Result<UnixStream> = tokio::select! {
        accepted = socket.listener.accept() => accepted.map(|(stream, _)| stream),
        () = &mut expired => {
            shared.fail(&format!("the worker did not connect within {hello_timeout:?}"));
            return;
        }
    };
    drop(socket);
    match stream {
        Ok(stream) => shared.clone().attend(stream),
        Err(error) => return shared.fail(&format!("could not accept the worker: {error}")),
    }
    if tokio::time::timeout_at(expired.deadline(), shared.greeted()).await.is_err() {
        shared.fail(&format!("the worker did not say hello within {hello_timeout:?}"));
    }
}
