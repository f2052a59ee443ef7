//! `hearth up` as a child process, with a data directory of its own.
//!
//! A test deploys through the program's own commands, calls functions by their host names, and asks
//! the API what the daemon knows. A daemon can be killed and started again with the same data.

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use serde_json::Value;

use crate::{
    client::{Connection, PATIENCE, Request, Response},
    folder,
    process::Process,
    server::{Scratch, adapter, hearth},
    wait,
};

/// Below this domain functions have their host names.
const DOMAIN: &str = "localhost";

/// A daemon with its data. Dropping it stops it, and fails the test if anything is left.
#[derive(Debug)]
pub struct Platform {
    options: Options,
    // Before the scratch directory, which holds its data.
    daemon: Mutex<Daemon>,
    said: Said,
    _scratch: Scratch,
}

/// How a daemon differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct Options {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    data: Option<PathBuf>,
    descriptors: Option<u64>,
}

/// All that daemons of one platform wrote, to standard output and error.
type Said = Arc<Mutex<String>>;

#[derive(Debug)]
struct Daemon {
    child: Child,
    process: Process,
    address: SocketAddr,
}

/// How a command ended, and what it said.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub errors: String,
}

impl Options {
    /// Options with arguments of `hearth up`.
    pub fn with<const N: usize>(arguments: [&str; N]) -> Self {
        Self { arguments: arguments.map(str::to_owned).into(), ..Self::default() }
    }

    /// Sets a variable of the daemon's environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Lets the daemon open no more files than this.
    pub fn descriptors(mut self, limit: u64) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Keeps the data in a directory that exists, and stays.
    pub fn data(mut self, directory: &Path) -> Self {
        self.data = Some(directory.into());
        self
    }
}

impl Platform {
    /// A daemon with nothing deployed.
    pub fn new() -> Self {
        Self::start(Options::default())
    }

    /// A daemon with arguments of its own.
    pub fn with<const N: usize>(arguments: [&str; N]) -> Self {
        Self::start(Options::with(arguments))
    }

    /// Starts a daemon and waits until it accepts calls.
    ///
    /// # Panics
    ///
    /// If it does not start; what it said is part of the message.
    pub fn start(mut options: Options) -> Self {
        let scratch = Scratch::new();
        options.data.get_or_insert_with(|| scratch.path().join("data"));
        let said = Said::default();
        let daemon = Daemon::start(&options, &said).expect("hearth up serves");
        Self { options, daemon: Mutex::new(daemon), said, _scratch: scratch }
    }

    /// Another daemon on the same data, which must end by itself.
    ///
    /// # Panics
    ///
    /// If it serves.
    pub fn refused(&self) -> Finished {
        Daemon::start(&self.options, &self.said).expect_err("two daemons on the same data")
    }

    /// Starts the daemon again, with the same data.
    ///
    /// # Panics
    ///
    /// If it does not start, or if the last one still runs.
    pub fn restart(&self) {
        let mut daemon = lock(&self.daemon);
        assert!(!daemon.process.is_alive(), "the last daemon still runs");
        *daemon = Daemon::start(&self.options, &self.said).expect("hearth up serves again");
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, name: &str) {
        self.process().signal(name);
    }

    /// Waits until the daemon has ended.
    pub fn wait_for_exit(&self) -> ExitStatus {
        lock(&self.daemon).wait_for_exit()
    }

    /// Kills the daemon, and waits until none of its processes is left.
    pub fn kill(&self) {
        let family = self.process().descendants();
        self.signal("KILL");
        self.wait_for_exit();
        wait::until("nothing is left of the daemon", || !family.iter().any(Process::is_alive));
    }

    /// The daemon's process.
    pub fn process(&self) -> Process {
        lock(&self.daemon).process.clone()
    }

    /// Whether the daemon runs.
    pub fn is_alive(&self) -> bool {
        self.process().is_alive()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        lock(&self.daemon).address
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        self.options.data.as_deref().expect("set when it was started")
    }

    /// What proves to it who asks.
    ///
    /// # Panics
    ///
    /// If it has written none.
    pub fn token(&self) -> String {
        let text = fs::read_to_string(self.data().join("token")).expect("the daemon's token");
        text.trim().to_owned()
    }

    /// What it has written so far, to standard output and error.
    pub fn said(&self) -> String {
        lock(&self.said).clone()
    }

    /// Runs one of the program's commands.
    ///
    /// # Panics
    ///
    /// If the program does not run at all.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Finished {
        let output = self.prepared(arguments).output().expect("hearth runs");
        Finished {
            code: output.status.code(),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// One of the program's commands, not yet started.
    pub fn prepared<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = hearth();
        command.args(arguments).env("HEARTH_DATA", self.data());
        command.env("HEARTH_URL", format!("http://{}", self.address()));
        command
    }

    /// Deploys a folder.
    pub fn try_deploy(&self, name: &str, source: &Path, flags: &[&str]) -> Finished {
        let source = source.to_str().expect("our paths are text");
        self.command(&[&["deploy", source, "--name", name], flags].concat())
    }

    /// Deploys a folder.
    ///
    /// # Panics
    ///
    /// If that fails; what the command said is part of the message.
    pub fn deploy(&self, name: &str, source: &Path, flags: &[&str]) {
        let Finished { code, errors, .. } = self.try_deploy(name, source, flags);
        assert_eq!(code, Some(0), "{name} is deployed: {errors}");
    }

    /// A new connection.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub fn connect(&self) -> Connection {
        Connection::open(self.address()).expect("the daemon accepts connections")
    }

    /// Calls a function.
    ///
    /// # Panics
    ///
    /// If there is no response at all.
    pub fn call(&self, name: &str, target: &str) -> Response {
        self.connect().call(&request(name, target)).expect("a response")
    }

    /// Sends a request to the API, with the token.
    ///
    /// # Panics
    ///
    /// If there is no response at all.
    pub fn api(&self, method: &str, target: &str) -> Response {
        let bearer = format!("Bearer {}", self.token());
        let request = Request::new(method, target).header("host", "127.0.0.1");
        let request = request.header("authorization", &bearer);
        self.connect().call(&request).expect("a response")
    }

    /// What the API tells.
    ///
    /// # Panics
    ///
    /// If it refuses to.
    pub fn ask(&self, target: &str) -> Value {
        let response = self.api("GET", target);
        assert_eq!(response.status(), 200, "{target}: {}", response.text());
        response.json()
    }

    /// What the API tells of a function.
    pub fn function(&self, name: &str) -> Value {
        self.ask(&format!("/v1/functions/{name}"))
    }

    /// One of the numbers of what a function does at the moment.
    ///
    /// # Panics
    ///
    /// If there is no such number.
    pub fn load(&self, name: &str, number: &str) -> u64 {
        self.function(name)["load"][number].as_u64().expect("a number")
    }

    /// Ids of a function's instances.
    pub fn instances(&self, name: &str) -> Vec<String> {
        let all = self.ask("/v1/instances");
        let all = all.as_array().into_iter().flatten();
        let own = all.filter(|instance| instance["function"] == name);
        own.map(|instance| instance["id"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// What a function's log has, a line each.
    ///
    /// # Panics
    ///
    /// If the API refuses to tell, or if a line is no JSON.
    pub fn log(&self, name: &str) -> Vec<Value> {
        let response = self.api("GET", &format!("/v1/functions/{name}/logs?limit=100000"));
        assert_eq!(response.status(), 200, "{}", response.text());
        let text = response.text();
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// Texts that a function logged.
    pub fn logged(&self, name: &str) -> Vec<String> {
        let lines = self.log(name).into_iter();
        lines.filter_map(|line| line["text"].as_str().map(str::to_owned)).collect()
    }

    /// The processes of an instance, that of its sandbox included.
    pub fn processes(&self, instance: &str) -> Vec<Process> {
        let mut family = self.process().descendants();
        family.retain(|process| process.groups().iter().any(|group| group.ends_with(instance)));
        family
    }

    /// Kills what runs in a function's instances.
    ///
    /// # Panics
    ///
    /// If it has none.
    pub fn kill_instances(&self, name: &str) {
        let instances = self.instances(name);
        let processes = instances.iter().flat_map(|instance| self.processes(instance));
        let processes: Vec<_> = processes.collect();
        assert!(!processes.is_empty(), "{name} has an instance with processes");
        for process in processes {
            process.signal("KILL");
        }
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        let daemon = self.daemon.get_mut().unwrap_or_else(PoisonError::into_inner);
        let family = daemon.process.descendants();
        if thread::panicking() {
            let _ = daemon.child.kill();
            let _ = daemon.child.wait();
            for process in family.iter().filter(|process| process.is_alive()) {
                process.signal("KILL");
            }
            eprintln!("the daemon said:\n{}", lock(&self.said));
            return;
        }
        if daemon.process.is_alive() {
            daemon.process.signal("TERM");
        }
        daemon.wait_for_exit();
        wait::until("nothing is left of the daemon", || !family.iter().any(Process::is_alive));
    }
}

impl Daemon {
    fn start(options: &Options, said: &Said) -> Result<Self, Finished> {
        let mut command = hearth();
        if let Some(limit) = options.descriptors {
            // The same process, once the shell has set the limit.
            let program = command.get_program().to_owned();
            command = with_environment_of(&command, "sh");
            command.args(["-c", "ulimit -n $0 && exec \"$@\"", &limit.to_string()]).arg(program);
        }
        command.args(["up", "--listen", "127.0.0.1:0", "--adapter", &adapter()]);
        command.arg("--data").args(&options.data).args(&options.arguments);
        command.envs(options.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("hearth runs");
        let (sender, lines) = mpsc::channel();
        let output = child.stdout.take().expect("asked for");
        let errors = child.stderr.take().expect("asked for");
        let output = keep(output, said, Some(sender));
        let errors = keep(errors, said, None);
        let address = lines.recv_timeout(PATIENCE).ok().and_then(|line| {
            line.strip_prefix("listening on http://").and_then(|address| address.parse().ok())
        });
        if let Some((address, process)) = address.zip(Process::of(child.id())) {
            return Ok(Self { child, process, address });
        }
        let is_stuck = !wait::comes(|| !matches!(child.try_wait(), Ok(None)));
        assert!(!is_stuck, "hearth neither serves nor ends");
        let status = child.wait().expect("it is our child");
        let [output, errors] = [output, errors].map(|text| text.join().unwrap_or_default());
        Err(Finished { code: status.code(), output, errors })
    }

    fn wait_for_exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait::until("the daemon has ended", || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("it was waited for")
    }
}

fn with_environment_of(other: &Command, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    command.envs(other.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Reads all that comes. The first line is told, too.
fn keep(
    from: impl Read + Send + 'static,
    said: &Said,
    mut first: Option<mpsc::Sender<String>>,
) -> thread::JoinHandle<String> {
    let said = said.clone();
    thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            text.push_str(&line);
            text.push('\n');
            let mut said = lock(&said);
            said.push_str(&line);
            said.push('\n');
            drop(said);
            if let Some(first) = first.take() {
                let _ = first.send(line);
            }
        }
        text
    })
}

/// Whether instances are isolated and limited here; if not, a test that needs it is skipped.
pub fn is_sandboxed(test: &str) -> bool {
    let is_sandboxed = adapter() == "sandbox";
    if !is_sandboxed {
        skip(&format!("{test}: only in the adapter `sandbox`"));
    }
    is_sandboxed
}

/// Whether instances have control groups here, which tell their processes apart and explain how
/// they ended; if not, a test that needs it is skipped.
pub fn has_groups(test: &str) -> bool {
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !is_root {
        skip(&format!("{test}: without root there may be no control groups"));
    }
    is_root && is_sandboxed(test)
}

/// Says that a test is skipped, and why, also where the test's own output is not shown.
pub fn skip(why: &str) {
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// A request to a function, by its host name.
pub fn request(name: &str, target: &str) -> Request {
    Request::new("GET", target).header("host", &format!("{name}.{DOMAIN}"))
}

/// The folder of the function that does what the platform's tests ask for, in a language.
pub fn fixture(runtime: &str) -> PathBuf {
    folder().join("functions/platform").join(runtime)
}

/// A function's folder, made of texts. Dropping it removes it.
#[derive(Debug)]
pub struct Source(Scratch);

impl Source {
    /// A folder with these files.
    ///
    /// # Panics
    ///
    /// If they cannot be written.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        for (name, text) in files {
            fs::write(scratch.path().join(name), text).expect("a source file");
        }
        Self(scratch)
    }

    /// A function in Node.js.
    pub fn node(text: &str) -> Self {
        Self::of(&[("index.js", text)])
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A test that failed while it held a lock is reported by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
