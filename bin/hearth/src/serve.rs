//! `hearth serve`: one function as an Open Runtimes v5 server.

use std::{fs::OpenOptions, io::Write, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use adapter::Adapter;
use adapter_process::ProcessAdapter;
use adapter_sandbox::SandboxAdapter;
use anyhow::Context;
use executor::{Engine, Function, FunctionConfig, Mode, Stock, Template};
use host::{
    Backend, EnforcedHeaders, HostConfig, LogDirectory, Logs, Secret, Server, ServerLimits,
};
use model::{LaunchSpec, Limits, Network};
use protocol::{Call, CallError, Reply};
use protocol_worker::{WorkerConfig, WorkerProtocol};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    exit::{Failure, Fatal},
    output,
    runtimes::{Catalogue, Interpreter, Runtime, SYSTEM_PATH},
    source,
    state::{self, OwnedDirectory},
};

/// The hidden first argument that makes the program a sandbox launcher.
pub(crate) const LAUNCHER: &str = "__launcher";
/// Who functions run as inside a sandbox, and so who owns their code.
const FUNCTION_USER: u32 = 1000;

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const BIND_TIMEOUT: Duration = Duration::from_secs(60);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a worker may take to give up a call whose time is over.
const PATIENCE: Duration = Duration::from_millis(250);
/// Calls at once, waiting ones included; each may hold a body of 20 MiB.
const MAX_CALLS: usize = 1024;

const EXAMPLES: &str = "\
Examples:
  hearth serve ./hello
  hearth serve ./hello --listen 0.0.0.0:3000 --logs /var/log/hello --env GREETING=Hi
  hearth serve ./hello --runtime python-3.11 --memory 256MiB --network none

Read from the environment: OPEN_RUNTIMES_SECRET, OPEN_RUNTIMES_ENV, OPEN_RUNTIMES_HEADERS,
OPEN_RUNTIMES_ENTRYPOINT.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The folder with the function's source. It is copied, never changed.
    directory: PathBuf,
    /// The runtime, such as `node` or `python-3.11` [default: told from the source].
    #[arg(long, value_name = "NAME[-VERSION]")]
    runtime: Option<String>,
    /// The file that defines the function [default: the runtime's usual names].
    #[arg(long, value_name = "FILE", env = "OPEN_RUNTIMES_ENTRYPOINT")]
    entrypoint: Option<String>,
    /// Where to listen; port 0 picks a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Write `<id>_logs.log` and `<id>_errors.log` to this folder [default: standard error].
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Append timings to this file, which `/__opr/timings` shows.
    #[arg(long, value_name = "FILE")]
    telemetry: Option<PathBuf>,
    /// A variable for the function's environment. May be repeated.
    #[arg(long = "env", value_name = "K=V", value_parser = parse_variable)]
    environment: Vec<(String, String)>,
    /// Memory of an instance.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = parse_memory)]
    memory: u64,
    /// Processors of an instance.
    #[arg(long, value_name = "N", default_value = "1", value_parser = model::parse_cpus_milli)]
    cpus: u32,
    /// What an instance can reach: `egress` (public addresses), `none` or `host`
    /// [default: egress where the machine can give it, else none].
    #[arg(long)]
    network: Option<Network>,
    /// Where instances run.
    #[arg(long, value_enum, default_value_t = AdapterName::Sandbox)]
    adapter: AdapterName,
    /// Refuse whatever does not isolate functions.
    #[arg(long)]
    production: bool,
    /// How many instances wait, unbound, to replace one or to serve a fresh call.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(..=256))]
    spares: u16,
    /// Give every call a new instance (for measuring).
    #[arg(long)]
    fresh: bool,
    /// Use the runtimes in this directory instead of the built-in ones.
    #[arg(long, value_name = "DIR")]
    runtimes: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum AdapterName {
    /// Linux namespaces, cgroups and seccomp.
    Sandbox,
    /// Plain processes: no isolation, for development.
    Process,
}

/// An adapter with what the program must know of it beyond the trait.
enum Chosen {
    Sandbox(Arc<SandboxAdapter>),
    Process(Arc<ProcessAdapter>),
}

/// The function's code and runtime, ready to be launched.
struct Prepared {
    template: Template,
    artifact: PathBuf,
    entrypoint: String,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write it as NAME=value".into()),
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 16 << 20;
    let bytes = model::parse_size(text).map_err(|error| error.to_string())?;
    if bytes < LEAST { Err("no runtime starts with less than 16MiB".into()) } else { Ok(bytes) }
}

/// Serves until a signal ends it.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.production && arguments.adapter == AdapterName::Process {
        let message = "the adapter `process` does not isolate functions, so --production refuses \
                       it; use the adapter `sandbox` (`hearth doctor` says what it needs)";
        return Err(Fatal::new(Failure::Usage, message).into());
    }
    allow_many_files();
    // One thread: the path of a call crosses no core, and a second one would compete with the
    // function for the machine. `docs/performance.md` has the figures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let signals = Signals::listen()?;
        tokio::select! {
            () = signals.hurry.cancelled() => Ok(()),
            outcome = serve(arguments, &signals.stop) => outcome,
        }
    })
}

/// Each connection needs a descriptor, and the usual soft limit of 1024 is for programs that use
/// `select`. Failing that, fewer connections are accepted at once.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// The first signal asks for an orderly end, the second for an end.
struct Signals {
    stop: CancellationToken,
    hurry: CancellationToken,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let tokens = [stop.clone(), hurry.clone()];
        tokio::spawn(async move {
            for token in tokens {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(Self { stop, hurry })
    }
}

async fn serve(arguments: Arguments, stop: &CancellationToken) -> anyhow::Result<()> {
    let started = Instant::now();
    let data = OwnedDirectory::create(&state::data_parent())?;
    let sockets = OwnedDirectory::create(&state::runtime_parent())?;
    let telemetry = Telemetry(arguments.telemetry.clone());
    let host_config = host_config(&arguments)?;

    let mut prepared = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        prepared = prepare(&arguments, &data, &telemetry) => prepared?,
    };
    let adapter = Chosen::start(arguments.adapter, &data).await?;
    prepared.template.spec.network = adapter.network(arguments.network);
    let engine = Engine::new(
        adapter.adapter(),
        Arc::new(worker_protocol(&sockets)?),
        Arc::new(output::of_instance),
    );
    let stock = Stock::new(engine, prepared.template.clone(), arguments.spares.into());
    let function = Function::new(stock.clone(), function_config(&arguments, &prepared));
    let server = Server::bind(arguments.listen, ServerLimits::default())
        .await
        .with_context(|| format!("could not listen on {}", arguments.listen))?;

    let keeping = {
        let function = function.clone();
        tokio::spawn(async move {
            // The first instance before its spares: calls may be waiting for it.
            let spares = async {
                function.settled().await;
                stock.keep().await;
            };
            tokio::join!(function.keep(), spares);
        })
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = function.settled() => {
            announce(server.address()?, &adapter)?;
            telemetry.append("startup", started.elapsed())?;
            let backend = Arc::new(Serving(function.clone()));
            server.run(host_config, backend, stop.cancelled()).await;
        }
    }
    keeping.abort();
    let _ = keeping.await;
    function.shut_down().await;
    adapter.shut_down().await;
    Ok(())
}

/// Says where calls are accepted, now that they are. Both lines are for programs, too.
fn announce(address: SocketAddr, adapter: &Chosen) -> anyhow::Result<()> {
    for weakness in adapter.weaknesses() {
        eprintln!("note: {weakness}");
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening on http://{address}")?;
    writeln!(out, "HTTP server successfully started!")?;
    out.flush()?;
    Ok(())
}

struct Serving(Arc<Function>);

#[async_trait::async_trait]
impl Backend for Serving {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.0.call(call).await
    }
}

/// The telemetry file: lines of `key=seconds` (Open Runtimes specification, 3.6).
struct Telemetry(Option<PathBuf>);

impl Telemetry {
    fn append(&self, key: &str, took: Duration) -> anyhow::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let line = format!("{key}={:.3}\n", took.as_secs_f64());
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("could not write to {}", path.display()))
    }
}

fn host_config(arguments: &Arguments) -> anyhow::Result<HostConfig> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (enforced, complaint) = EnforcedHeaders::parse(&variable("OPEN_RUNTIMES_HEADERS"));
    if let Some(complaint) = complaint {
        eprintln!("note: {complaint}; no header is enforced");
    }
    let logs = match &arguments.logs {
        Some(path) => {
            let opened = LogDirectory::open(path);
            Logs::Directory(opened.with_context(|| format!("could not open {}", path.display()))?)
        }
        None => Logs::Terminal,
    };
    Ok(HostConfig {
        secret: Secret::new(variable("OPEN_RUNTIMES_SECRET")),
        enforced,
        is_development: variable("OPEN_RUNTIMES_ENV") == "development",
        logs,
        telemetry: arguments.telemetry.clone(),
        body_timeout: Duration::from_secs(30),
        half_closed_grace: Duration::from_secs(5),
    })
}

fn function_config(arguments: &Arguments, prepared: &Prepared) -> FunctionConfig {
    let given = ["OPEN_RUNTIMES_ENV", "OPEN_RUNTIMES_HEADERS"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let entrypoint = ("OPEN_RUNTIMES_ENTRYPOINT".to_owned(), prepared.entrypoint.clone());
    // What the user says explicitly comes last, and so wins.
    let environment = given.chain([entrypoint]).chain(arguments.environment.iter().cloned());
    FunctionConfig {
        artifact: prepared.artifact.clone(),
        entrypoint: prepared.entrypoint.clone(),
        environment: environment.collect(),
        mode: if arguments.fresh { Mode::Fresh } else { Mode::Shared },
        bind_timeout: BIND_TIMEOUT,
        drain_timeout: DRAIN_TIMEOUT,
        max_calls: MAX_CALLS,
    }
}

fn worker_protocol(sockets: &OwnedDirectory) -> anyhow::Result<WorkerProtocol> {
    Ok(WorkerProtocol::new(WorkerConfig {
        directory: sockets.subdirectory("sockets")?,
        hello_timeout: READY_TIMEOUT,
        patience: PATIENCE,
        instance_logs: Arc::new(output::of_instance),
    }))
}

/// Copies the source, runs the install step, finds the interpreter.
async fn prepare(
    arguments: &Arguments,
    data: &OwnedDirectory,
    telemetry: &Telemetry,
) -> anyhow::Result<Prepared> {
    let source = &arguments.directory;
    if !source.is_dir() {
        let message = format!("{} is not a directory", source.display());
        return Err(Fatal::new(Failure::Usage, message).into());
    }
    let catalogue = Catalogue::load(arguments.runtimes.as_deref())?;
    let (runtime, version) = match &arguments.runtime {
        Some(name) => catalogue.named(name)?,
        None => (catalogue.detect(source)?, None),
    };
    let entrypoint = source::entrypoint(source, runtime, arguments.entrypoint.as_deref())?;
    let interpreter = runtime.find(version)?;

    let copying = Instant::now();
    let artifact = data.path().join("code");
    source::copy_tree(source, &artifact)?;
    telemetry.append("extract", copying.elapsed())?;

    let installing = Instant::now();
    source::install(&artifact, runtime, &interpreter).await?;
    if rustix::process::geteuid().is_root() && arguments.adapter == AdapterName::Sandbox {
        source::give_to(&artifact, FUNCTION_USER).context("could not hand over the code")?;
    }
    let server = data.path().join("server");
    catalogue
        .write_server(runtime, &interpreter, &server)
        .context("could not write the runtime's files")?;
    telemetry.append("prepare", installing.elapsed())?;

    let template = template(arguments, runtime, &interpreter, server);
    Ok(Prepared { template, artifact, entrypoint })
}

fn template(
    arguments: &Arguments,
    runtime: &Runtime,
    interpreter: &Interpreter,
    server: PathBuf,
) -> Template {
    let usual = [("PATH", SYSTEM_PATH), ("HOME", "/tmp"), ("LANG", "C.UTF-8")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let own = runtime.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    let limits = Limits { cpus_milli: arguments.cpus, ..Limits::with_memory(arguments.memory) };
    let spec = LaunchSpec {
        id: runtime.name.parse().expect("runtimes' names are plain"),
        command: runtime.command(interpreter),
        zygote: runtime.zygote(interpreter),
        environment: usual.into_iter().chain(own).collect(),
        server,
        programs: interpreter.prefix.iter().cloned().collect(),
        limits,
        network: Network::None,
        socket: None,
    };
    Template { spec, ready_timeout: READY_TIMEOUT }
}

impl Chosen {
    async fn start(name: AdapterName, data: &OwnedDirectory) -> anyhow::Result<Self> {
        match name {
            AdapterName::Process => {
                let adapter = ProcessAdapter::start(data.subdirectory(state::PROCESSES)?)?;
                Ok(Self::Process(Arc::new(adapter)))
            }
            AdapterName::Sandbox => {
                let state = state::runtime_parent().join("sandbox");
                let launcher = vec!["/proc/self/exe".into(), LAUNCHER.into()];
                let config = adapter_sandbox::Config::new(state, launcher);
                let adapter = SandboxAdapter::start(config).await.map_err(|error| {
                    let message = format!(
                        "no sandbox on this machine: {:#}; `hearth doctor` says what is missing, \
                         `--adapter process` runs functions without isolation",
                        anyhow::Error::new(error)
                    );
                    Fatal::new(Failure::Unavailable, message)
                })?;
                Ok(Self::Sandbox(Arc::new(adapter)))
            }
        }
    }

    fn adapter(&self) -> Arc<dyn Adapter> {
        match self {
            Self::Sandbox(adapter) => adapter.clone(),
            Self::Process(adapter) => adapter.clone(),
        }
    }

    /// The network that instances get. What the user asked for is never replaced silently.
    fn network(&self, asked: Option<Network>) -> Network {
        match (self, asked) {
            (_, Some(asked)) => asked,
            (Self::Process(_), None) => Network::Host,
            // Why there is none is among its weaknesses.
            (Self::Sandbox(adapter), None) => match adapter.no_egress() {
                None => Network::Egress,
                Some(_) => Network::None,
            },
        }
    }

    fn weaknesses(&self) -> Vec<String> {
        match self {
            Self::Sandbox(adapter) => adapter.weaknesses(),
            Self::Process(_) => vec!["the adapter `process` does not isolate functions".into()],
        }
    }

    async fn shut_down(&self) {
        match self {
            Self::Sandbox(adapter) => adapter.shutdown().await,
            Self::Process(_) => {}
        }
    }
}
