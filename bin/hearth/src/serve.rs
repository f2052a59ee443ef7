//! `hearth serve`: one function as an Open Runtimes v5 server.

use std::{fs::OpenOptions, io::Write, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use adapter_sandbox::Subnet;
use anyhow::Context;
use executor::{
    CallError, Engine, Executor, ExecutorConfig, PoolLimits, Progress, Revision, Service,
    SparePolicy, Template,
};
use host::{
    Backend, EnforcedHeaders, HostConfig, LogDirectory, Logs, Secret, Server, ServerLimits,
};
use model::{Limits, Network, Scale};
use protocol::{Call, Reply};
use protocol_worker::WorkerProtocol;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    exit::{Failure, Fatal, complain},
    output,
    parts::{
        self, AdapterName, BIND_TIMEOUT, Chosen, DRAIN_TIMEOUT, Signals, Surroundings,
        parse_cpus_milli, parse_listen, parse_memory, parse_variable, whole, worker_config,
    },
    paths,
    runtimes::{Catalogue, Interpreter, Runtime},
    source,
    state::{self, OwnedDirectory},
};

/// Calls at once, waiting ones included; each may hold a body of 20 MiB.
const MAX_CALLS: u32 = 1024;

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
    #[arg(value_parser = paths::absolute())]
    directory: PathBuf,
    /// The runtime, such as `node` or `python-3.11` [default: told from the source].
    #[arg(long, value_name = "NAME[-VERSION]")]
    runtime: Option<String>,
    /// The file that defines the function [default: the runtime's usual names].
    #[arg(long, value_name = "FILE", env = "OPEN_RUNTIMES_ENTRYPOINT")]
    entrypoint: Option<String>,
    /// Where to listen, also by a name such as localhost; port 0 picks a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:3000", value_parser = parse_listen)]
    listen: SocketAddr,
    /// Write `<id>_logs.log` and `<id>_errors.log` to this folder [default: standard error].
    #[arg(long, value_name = "DIR", value_parser = paths::absolute())]
    logs: Option<PathBuf>,
    /// Append timings to this file, which `/__opr/timings` shows.
    #[arg(long, value_name = "FILE", value_parser = paths::absolute())]
    telemetry: Option<PathBuf>,
    /// A variable for the function's environment. May be repeated.
    #[arg(long = "env", value_name = "K=V", value_parser = parse_variable)]
    environment: Vec<(String, String)>,
    /// Memory of an instance [default: 512MiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u64>,
    /// Processors of an instance [default: 1].
    #[arg(long, value_name = "N", value_parser = parse_cpus_milli)]
    cpus: Option<u32>,
    /// What an instance can reach: `egress` (public addresses), `none` or `host`
    /// [default: egress where the machine can give it, else none].
    #[arg(long)]
    network: Option<Network>,
    /// A range that instances with the network `egress` reach beside public addresses, such as
    /// 10.1.0.0/16. May be repeated. This host's own addresses and other instances stay closed.
    #[arg(long = "allow-network", value_name = "CIDR")]
    allowed_networks: Vec<Subnet>,
    /// Where instances run.
    #[arg(long, value_enum, default_value_t = AdapterName::Sandbox)]
    adapter: AdapterName,
    /// Refuse whatever does not isolate functions.
    #[arg(long)]
    production: bool,
    /// How many instances wait, unbound, to replace one or to serve a fresh call.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(0..=256))]
    spares: u32,
    /// Give every call a new instance (for measuring).
    #[arg(long)]
    fresh: bool,
    /// Use the runtimes in this directory instead of the built-in ones.
    #[arg(long, value_name = "DIR", value_parser = paths::absolute())]
    runtimes: Option<PathBuf>,
}

/// The function's code and runtime, ready to be launched.
struct Prepared {
    runtime: Runtime,
    interpreter: Interpreter,
    server: PathBuf,
    artifact: PathBuf,
    entrypoint: String,
}

/// Serves until a signal ends it.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.production && arguments.adapter == AdapterName::Process {
        let message = "the adapter `process` does not isolate functions, so --production refuses \
                       it; use the adapter `sandbox` (`hearth doctor` says what it needs)";
        return Err(Fatal::new(Failure::Usage, message).into());
    }
    let mistake = parts::mistake_in_networks(arguments.adapter, &arguments.allowed_networks);
    if let Some(mistake) = mistake {
        return Err(Fatal::new(Failure::Usage, mistake).into());
    }
    parts::allow_many_files();
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

async fn serve(arguments: Arguments, stop: &CancellationToken) -> anyhow::Result<()> {
    let started = Instant::now();
    let data = OwnedDirectory::create(&state::data_parent())?;
    let sockets = OwnedDirectory::create(&state::runtime_parent())?;
    let telemetry = Telemetry(arguments.telemetry.clone());
    let host_config = host_config(&arguments)?;

    let surroundings = Surroundings {
        allowed_networks: arguments.allowed_networks.clone(),
        // A free one is picked only when the function is there.
        own_port: Some(arguments.listen.port()).filter(|port| *port != 0),
        ..Surroundings::default()
    };
    let adapter = Chosen::start(arguments.adapter, &data, surroundings).await?;
    let network = adapter.prove(&data, arguments.network).await?;
    let prepared = tokio::select! {
        () = stop.cancelled() => {
            adapter.shut_down().await;
            return Ok(());
        }
        prepared = prepare(&arguments, &data, &telemetry) => prepared?,
    };
    let engine = Engine::new(
        adapter.adapter(),
        Arc::new(WorkerProtocol::new(worker_config(&sockets)?)),
        Arc::new(output::of_instance),
    );
    let executor = Executor::new(engine, executor_config(&arguments));
    let template = template(&arguments, &prepared, network);
    let service = Arc::new(executor.serve(revision(&arguments, prepared, &template, &executor)));
    let connections = parts::connections(1 + arguments.spares);
    if let Some(few) = parts::few_connections(connections) {
        eprintln!("note: {few}");
    }
    let limits = ServerLimits { connections, ..ServerLimits::default() };
    let server = Server::bind(arguments.listen, limits)
        .await
        .with_context(|| format!("could not listen on {}", arguments.listen))?;

    tokio::select! {
        () = stop.cancelled() => {}
        // A function that does not load is served all the same: its calls and its log say why, and
        // so does standard error at once.
        outcome = service.ready(Instant::now() + 2 * BIND_TIMEOUT) => {
            if let Err(error) = outcome {
                complain(&format!("the function does not start, and its calls fail: {error}"));
            }
            parts::tell_of_networks(&arguments.allowed_networks);
            announce(server.address()?, &adapter);
            telemetry.append("startup", started.elapsed())?;
            let places = Semaphore::new(MAX_CALLS as usize);
            let backend = Arc::new(Serving { service: service.clone(), places });
            server.run(host_config, backend, stop.cancelled()).await;
        }
    }
    executor.shut_down(DRAIN_TIMEOUT).await;
    adapter.shut_down().await;
    Ok(())
}

/// Says where calls are accepted, now that they are. Both lines are for programs, too.
fn announce(address: SocketAddr, adapter: &Chosen) {
    for weakness in adapter.weaknesses() {
        eprintln!("note: {weakness}");
    }
    output::announce(&format!(
        "listening on http://{address}\nHTTP server successfully started!\n"
    ));
}

struct Serving {
    service: Arc<Service>,
    places: Semaphore,
}

#[async_trait::async_trait]
impl Backend for Serving {
    async fn call(&self, call: Call) -> Result<Reply, protocol::CallError> {
        let _place = self.places.try_acquire().map_err(|_| {
            let why = format!("The function is at its limit of {MAX_CALLS} calls.");
            protocol::CallError::Unavailable { why }
        })?;
        let outcome = self.service.call(call, &Progress::default()).await;
        // Open Runtimes' clients know no difference between these.
        outcome.map_err(|error| match error {
            CallError::Call(error) | CallError::BackingOff { cause: error, .. } => error,
            CallError::Busy { why, .. } => protocol::CallError::Unavailable { why },
        })
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

fn executor_config(arguments: &Arguments) -> ExecutorConfig {
    let spares = arguments.spares;
    ExecutorConfig {
        limits: PoolLimits {
            instances: MAX_CALLS + spares,
            // There is one function.
            reserve: 0,
            waiting_per_function: MAX_CALLS as usize,
            waiting: MAX_CALLS as usize,
        },
        spares: SparePolicy { min: spares, max: spares, keep_for: Duration::MAX },
        ..ExecutorConfig::default()
    }
}

fn template(arguments: &Arguments, prepared: &Prepared, network: Network) -> Template {
    let usual = arguments.memory.map_or_else(Limits::default, Limits::with_memory);
    let limits = Limits { cpus_milli: arguments.cpus.unwrap_or(usual.cpus_milli), ..usual };
    let Prepared { runtime, interpreter, server, .. } = prepared;
    parts::template(runtime, interpreter, server.clone(), limits, network)
}

fn revision(
    arguments: &Arguments,
    prepared: Prepared,
    template: &Template,
    executor: &Executor,
) -> Revision {
    let given = ["OPEN_RUNTIMES_ENV", "OPEN_RUNTIMES_HEADERS"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let entrypoint = ("OPEN_RUNTIMES_ENTRYPOINT".to_owned(), prepared.entrypoint.clone());
    // What the user says explicitly comes last, and so wins.
    let environment = given.chain([entrypoint]).chain(arguments.environment.iter().cloned());
    let instances = if arguments.fresh { MAX_CALLS } else { 1 };
    Revision {
        label: "the function".into(),
        stock: executor.stock(template),
        artifact: prepared.artifact,
        entrypoint: prepared.entrypoint,
        environment: environment.collect(),
        limits: template.spec.limits.clone(),
        scale: Scale { concurrency: MAX_CALLS, min: 0, max: instances, idle: Duration::MAX },
        is_single_use: arguments.fresh,
        bind_timeout: BIND_TIMEOUT,
        on_bind: None,
    }
}

/// Copies the source, runs the install step, finds the interpreter.
async fn prepare(
    arguments: &Arguments,
    data: &OwnedDirectory,
    telemetry: &Telemetry,
) -> anyhow::Result<Prepared> {
    let source = &arguments.directory;
    if !source.is_dir() {
        let (failure, what) = if source.exists() {
            (Failure::Usage, "is not a folder")
        } else {
            (Failure::NoInput, "does not exist")
        };
        return Err(Fatal::new(failure, format!("{} {what}", source.display())).into());
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
    source::install(&artifact, runtime, &interpreter, source::Output::Terminal).await?;
    if rustix::process::geteuid().is_root() && arguments.adapter == AdapterName::Sandbox {
        source::give_to(&artifact, adapter_sandbox::ARTIFACT_OWNER)
            .context("could not hand over the code")?;
    }
    let server = data.path().join("server");
    catalogue
        .write_server(runtime, &interpreter, &server)
        .context("could not write the runtime's files")?;
    telemetry.append("prepare", installing.elapsed())?;

    Ok(Prepared { runtime: runtime.clone(), interpreter, server, artifact, entrypoint })
}
