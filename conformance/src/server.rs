//! Hearth as a child process.

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, bail};

use crate::{
    client::{Connection, PATIENCE, Request, Response},
    flavour::Flavour,
    process::Process,
    wait,
};

/// The program, with an environment that holds nothing of ours.
pub fn hearth() -> Command {
    let mut command = Command::new(program());
    command.env_clear().stdin(Stdio::null());
    for name in ["PATH", "HOME"] {
        command.envs(env::var_os(name).map(|value| (name, value)));
    }
    command
}

/// Where instances run in these tests.
pub fn adapter() -> String {
    env::var("HEARTH_ADAPTER").unwrap_or_else(|_| "sandbox".into())
}

/// `HEARTH_BIN`, or what the workspace has built, which is built if it is not there.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = env::var_os("HEARTH_BIN") {
            return path.into();
        }
        let ourselves = env::current_exe().expect("tests are files");
        // <target>/<profile>/deps/<test>
        let profile = ourselves.ancestors().nth(2).expect("cargo puts tests two levels deep");
        let path = profile.join("hearth");
        if !path.is_file() {
            let built = Command::new(env!("CARGO")).args(["build", "-p", "hearth"]).status();
            assert!(built.is_ok_and(|status| status.success()), "hearth does not build");
        }
        path
    })
}

/// How a server differs from the usual one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Settings {
    /// More arguments of `hearth serve`.
    pub arguments: Vec<String>,
    /// The daemon's environment.
    pub environment: BTreeMap<String, String>,
    /// The entrypoint, if it is not the flavour's.
    pub entrypoint: Option<String>,
}

impl Settings {
    /// Settings with more arguments.
    pub fn with<const N: usize>(arguments: [&str; N]) -> Self {
        Self { arguments: arguments.map(str::to_owned).into(), ..Self::default() }
    }
}

/// A running `hearth serve`. Dropping it stops it and removes its scratch directory.
#[derive(Debug)]
pub struct Server {
    child: Mutex<Child>,
    process: Process,
    address: SocketAddr,
    scratch: Scratch,
    errors: Mutex<Option<JoinHandle<String>>>,
}

impl Server {
    /// Starts a server and waits until it accepts calls.
    ///
    /// # Panics
    ///
    /// If it does not start; what it said is part of the message.
    pub fn start(flavour: &Flavour, settings: &Settings) -> Self {
        Self::run(&mut serve(flavour, settings))
    }

    /// Runs a command that serves, with a folder for its logs.
    ///
    /// # Panics
    ///
    /// If it does not serve; what it said is part of the message.
    pub fn run(command: &mut Command) -> Self {
        Self::try_run(command).expect("hearth serves")
    }

    fn try_run(command: &mut Command) -> anyhow::Result<Self> {
        let scratch = Scratch::new();
        command.arg("--logs").arg(scratch.path().join("logs"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let (output, errors) = output.zip(errors).context("both were asked for")?;
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = BufReader::new(errors).read_to_string(&mut text);
            text
        });
        let Some(address) = announced_address(output) else {
            let _ = child.kill();
            let status = child.wait()?;
            bail!("hearth ended with {status}: {}", errors.join().unwrap_or_default());
        };
        let process = Process::of(child.id()).context("hearth ended at once")?;
        let (child, errors) = (Mutex::new(child), Mutex::new(Some(errors)));
        Ok(Self { child, process, address, scratch, errors })
    }

    /// A server that tests of this process use together. It ends with the last of them.
    pub fn shared(flavour: &Flavour, settings: &Settings) -> Arc<Self> {
        type Running = HashMap<(Flavour, Settings), Arc<Mutex<Weak<Server>>>>;
        static RUNNING: OnceLock<Mutex<Running>> = OnceLock::new();
        let key = (flavour.clone(), settings.clone());
        let place = {
            let mut running = lock(RUNNING.get_or_init(Mutex::default));
            running.entry(key).or_default().clone()
        };
        let mut place = lock(&place);
        place.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start(flavour, settings));
            *place = Arc::downgrade(&server);
            server
        })
    }

    /// The usual server of a flavour.
    pub fn usual(flavour: &Flavour) -> Arc<Self> {
        Self::shared(flavour, &Settings::default())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    /// The workers of its instances, bound or not.
    pub fn workers(&self) -> Vec<Process> {
        let mut descendants = self.process.descendants();
        // A zygote has the command line of the workers that fork from it, and no namespace.
        descendants.retain(|process| {
            let command = process.command_line();
            let is_zygote = command.contains("--zygote") && !process.has_own_pids();
            command.contains("/src/worker.") && !is_zygote
        });
        descendants
    }

    /// A new connection.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub fn connect(&self) -> Connection {
        Connection::open(self.address).expect("hearth accepts connections")
    }

    /// Sends a request on a connection of its own.
    ///
    /// # Panics
    ///
    /// If there is no response.
    pub fn call(&self, request: &Request) -> Response {
        self.connect().call(request).expect("a response")
    }

    /// The file of a log, if it exists. `kind` is `logs` or `errors`.
    pub fn log_file(&self, id: &str, kind: &str) -> Option<String> {
        let bytes = fs::read(self.log_directory().join(format!("{id}_{kind}.log"))).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A log's two files, which must exist.
    ///
    /// # Panics
    ///
    /// If they do not.
    pub fn log_of(&self, response: &Response) -> (String, String) {
        let id = response.log_id().expect("a log id");
        let [logs, errors] = ["logs", "errors"].map(|kind| self.log_file(id, kind));
        logs.zip(errors).expect("both files of a log exist")
    }

    /// Where log files are.
    pub fn log_directory(&self) -> PathBuf {
        self.scratch.path().join("logs")
    }

    /// Waits until it has ended.
    pub fn wait_for_exit(&self) -> ExitStatus {
        let mut status = None;
        wait::until("hearth has ended", || {
            status = lock(&self.child).try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("it was waited for")
    }

    /// What it wrote to standard error. Waits until it has ended.
    pub fn errors(&self) -> String {
        self.wait_for_exit();
        let reader = lock(&self.errors).take();
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_alive() {
            self.process.signal("TERM");
        }
        let has_ended = thread::panicking() || wait::comes(|| !self.process.is_alive());
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
        assert!(has_ended, "hearth did not end after SIGTERM");
    }
}

/// `hearth serve` for a flavour.
fn serve(flavour: &Flavour, settings: &Settings) -> Command {
    let mut command = hearth();
    command.arg("serve").arg(flavour.folder()).args(["--listen", "127.0.0.1:0"]);
    command.args(["--runtime", &flavour.runtime, "--adapter", &adapter()]);
    let named = flavour.is_named.then_some(&flavour.entrypoint);
    if let Some(entrypoint) = settings.entrypoint.as_ref().or(named) {
        command.args(["--entrypoint", entrypoint]);
    }
    command.args(&settings.arguments).envs(&settings.environment);
    command
}

/// Reads standard output up to the line that says that calls are accepted.
fn announced_address(output: impl Read + Send + 'static) -> Option<SocketAddr> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        // Reads on after the receiver has gone: nobody may block on a full pipe.
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut address = None;
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        if let Some(announced) = line.strip_prefix("listening on http://") {
            address = announced.parse().ok();
        }
        if line.contains("HTTP server successfully started!") {
            return address;
        }
    }
    None
}

/// A directory of one test. Dropping it removes it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty directory.
    ///
    /// # Panics
    ///
    /// If the system's directory for such things cannot be written to.
    #[expect(clippy::new_without_default, reason = "a default should not touch the disk")]
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let serial = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("hearth-conformance-{}-{serial}", std::process::id());
        let path = env::temp_dir().join(name);
        // An earlier process may have had our number.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A test that failed while it held a lock is reported by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
