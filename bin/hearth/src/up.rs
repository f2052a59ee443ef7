//! `hearth up`: the platform, every role in one process.

mod data;
mod languages;
mod settings;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use catalog::CatalogError;
use edge::{LocalListener, Server, ServerLimits};
use executor::{Engine, Executor, ExecutorConfig, OnColdStart, PoolLimits, SparePolicy};
use front::{Door, DoorConfig, OwnNames};
use platform::{
    Administration, OpenError, Parts, Platform, PlatformConfig, Switchboard, Token, TokenError,
};
use protocol_worker::WorkerConfig;
use telemetry::{ColdStart, Collector, Format, Metrics, Spans};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    exit::{Failure, Fatal},
    output,
    parts::{self, Chosen, DRAIN_TIMEOUT, Signals, Surroundings},
    paths,
    runtimes::Catalogue,
    state::{self, OwnedDirectory},
};
pub(crate) use data::DataLock;
use languages::Languages;
pub(crate) use settings::Arguments;
use settings::Settings;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long the first instance of a new deployment may take, beside loading its code.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request's head may take, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the start waits for the system to look up this machine's own name.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until a signal ends it.
pub(crate) fn run(arguments: &Arguments, verbosity: u8) -> anyhow::Result<()> {
    let settings = arguments.settings()?;
    let format = settings.log_format.unwrap_or(Format::Text);
    // What an operator wants to see happens at this level.
    telemetry::start_daemon_logging(format, verbosity.max(1))?;
    parts::allow_many_files();
    // One thread: see `hearth serve`. What waits for the disk does so on threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let signals = Signals::listen()?;
        tokio::select! {
            () = signals.hurry.cancelled() => Ok(()),
            outcome = up(settings, &signals.stop) => outcome,
        }
    });
    // A build that does not end must not keep the program from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn up(settings: Settings, stop: &CancellationToken) -> anyhow::Result<()> {
    let started = Instant::now();
    let data = settings.data.clone().unwrap_or_else(paths::default_data);
    let _lock = DataLock::take(&data)?;
    if platform::prepare(&data)? {
        info!("finished to restore a backup");
    }
    let token = Token::load_or_create(&data.join("token")).map_err(|error| match error {
        TokenError::Exposed { .. } | TokenError::Foreign { .. } | TokenError::NoFile(_) => {
            Fatal::new(Failure::NoPermission, error.to_string()).into()
        }
        error => anyhow::Error::new(error),
    })?;
    let spans = spans_from_environment()?;
    let own = OwnedDirectory::create(&data.join("run"))?;
    let sockets = OwnedDirectory::create(&state::runtime_parent())?;
    let surroundings = Surroundings {
        memory_reserve: settings.memory_reserve,
        allowed_networks: settings.allowed_networks.clone(),
        // A free one is picked only when the platform is there.
        own_port: Some(settings.listen.port()).filter(|port| *port != 0),
    };
    let adapter = Chosen::start(settings.adapter, &own, surroundings).await?;
    let network = adapter.prove(&own, settings.network).await?;
    let listen = settings.listen;
    let connections = parts::connections(settings.instances());
    let limits = ServerLimits {
        connections,
        head_timeout: HEAD_TIMEOUT,
        drain_timeout: DRAIN_TIMEOUT,
        ..ServerLimits::default()
    };
    let server = Server::bind(listen, limits)
        .await
        .with_context(|| format!("could not listen on {listen}"))?;
    let address = server.address()?;
    // For the commands of this machine: nobody else can take its place, as with a port.
    let local = LocalListener::bind(&data, api::LOCAL_SOCKET)
        .with_context(|| format!("could not make a socket in {}", data.display()))?;

    let switchboard = Switchboard::default();
    let metrics = Arc::new(Metrics::new(VERSION));
    let languages = Languages::new(
        Catalogue::load(settings.runtimes.as_deref())?,
        own.subdirectory("servers")?,
        &adapter,
        network,
    );
    let executor = executor(&settings, &adapter, &sockets, &switchboard, &metrics)?;
    let url = match &settings.url {
        Some(url) => url.clone(),
        None => format!("http://{}", reachable(address).await),
    };
    let config = PlatformConfig {
        data: data.clone(),
        url: url.trim_end_matches('/').to_owned(),
        upload_bytes: 512 << 20,
        builds: 2,
        deployments: 64,
        start_timeout: settings.load_timeout + START_TIMEOUT,
        drain_timeout: DRAIN_TIMEOUT,
        bind_timeout: settings.load_timeout,
        logs: settings.log_limits(),
        machine: parts::machine(),
    };
    let parts = Parts {
        executor,
        switchboard,
        workshop: Arc::new(languages),
        metrics,
        spans,
        stop: stop.clone(),
    };
    let platform = Platform::open(config, parts).map_err(|error| refused(error, &data))?;
    let administration =
        Administration { platform: platform.clone(), token, started, stop: stop.clone() };
    let door_config = DoorConfig {
        own_names: own_names(&settings, address),
        domain: settings.domain.clone().unwrap_or_else(|| "localhost".into()),
        ..DoorConfig::default()
    };
    let door = Door::new(door_config, platform.clone(), administration.router());
    parts::tell_of_networks(&settings.allowed_networks);
    if let Some(few) = parts::few_connections(connections) {
        eprintln!("note: {few}");
    }
    announce(address, &data, &adapter, settings.instances());
    server.with_local(local).run(Arc::new(door), stop.cancelled()).await;
    platform.shut_down().await;
    adapter.shut_down().await;
    Ok(())
}

/// Where clients reach what listens at an address. Nobody can connect to `0.0.0.0`: this machine's
/// name stands for all its addresses if the system knows it, else the loopback does.
async fn reachable(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let port = address.port();
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let looking_up = tokio::net::lookup_host((name.as_str(), port));
    let found = timeout(LOOK_UP_TIMEOUT, looking_up).await;
    if found.is_ok_and(|found| found.is_ok_and(|mut found| found.next().is_some())) {
        return format!("{name}:{port}");
    }
    if address.is_ipv4() { format!("127.0.0.1:{port}") } else { format!("[::1]:{port}") }
}

/// What the daemon is called. Where only this machine can reach it, no other names count.
fn own_names(settings: &Settings, address: SocketAddr) -> OwnNames {
    let public = settings.url.as_deref().and_then(|url| {
        let (_, rest) = url.split_once("://")?;
        rest.split(['/', '?', '#']).next().map(str::to_owned)
    });
    let hosts = address.ip().to_canonical().is_loopback().then(|| {
        let host = public.as_deref().map(|public| edge::split_authority(public).0.to_owned());
        host.into_iter().chain(settings.domain.clone()).collect()
    });
    OwnNames { hosts, public }
}

fn executor(
    settings: &Settings,
    adapter: &Chosen,
    sockets: &OwnedDirectory,
    switchboard: &Switchboard,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Executor> {
    let worker = WorkerConfig {
        instance_logs: {
            let switchboard = switchboard.clone();
            Arc::new(move |id| switchboard.line(id))
        },
        ..parts::worker_config(sockets)?
    };
    let outputs = {
        let switchboard = switchboard.clone();
        Arc::new(move |id: &model::InstanceId| switchboard.line(id))
    };
    let protocol = Arc::new(protocol_worker::WorkerProtocol::new(worker));
    let engine = Engine::new(adapter.adapter(), protocol, outputs);
    let metrics = metrics.clone();
    let config = ExecutorConfig {
        limits: PoolLimits::for_instances(settings.instances()),
        spares: SparePolicy {
            max: settings.max_spares.unwrap_or(SparePolicy::default().max),
            ..SparePolicy::default()
        },
        on_cold_start: OnColdStart::new(move |runtime, has_found| {
            let kind = if has_found { ColdStart::Spare } else { ColdStart::Launch };
            metrics.cold_start(runtime, kind);
        }),
        ..ExecutorConfig::default()
    };
    Ok(Executor::new(engine, config))
}

/// Data that does not fit together is left alone; the message says what can be done about it.
fn refused(error: OpenError, data: &Path) -> anyhow::Error {
    let data = data.display();
    let remedy = match &error {
        OpenError::Catalog(CatalogError::Missing) => format!(
            "put catalog.db back into {data}, with catalog.db-wal if there is one, or restore a \
             backup with `hearth restore FILE --force`; to start over, `mv {data} {data}.old`"
        ),
        OpenError::Catalog(CatalogError::Older { note } | CatalogError::Stranger { note }) => {
            format!(
                "copy catalog.db to {data} again, with its catalog.db-wal, or restore a backup with \
                 `hearth restore FILE --force`; to use it as it is, remove {}: artifacts that it \
                 does not know then stay in {data}/trash for seven days",
                note.display()
            )
        }
        _ => return error.into(),
    };
    let why = model::describe(&error);
    Fatal::new(Failure::NoInput, format!("{why}; nothing was changed: {remedy}")).into()
}

/// The usual variables of OpenTelemetry decide whether spans are sent.
fn spans_from_environment() -> anyhow::Result<Arc<Spans>> {
    let variable = |name| std::env::var(name).ok();
    let collector = Collector {
        endpoint: variable("OTEL_EXPORTER_OTLP_ENDPOINT"),
        traces_endpoint: variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        service_name: variable("OTEL_SERVICE_NAME"),
    };
    let spans = Spans::start(&collector, VERSION)
        .map_err(|error| Fatal::new(Failure::Usage, error.to_string()))?;
    Ok(Arc::new(spans))
}

/// Says where calls are accepted, now that they are. The first line is for programs, too. Nobody
/// need listen: that is no reason not to serve.
fn announce(address: SocketAddr, data: &Path, adapter: &Chosen, instances: u32) {
    for weakness in adapter.weaknesses().into_iter().chain(adapter.overcommitment(instances)) {
        eprintln!("note: {weakness}");
    }
    if rustix::process::geteuid().is_root() {
        eprintln!(
            "note: a deploy's install step runs as root on this host, so whoever has the token is root"
        );
    }
    let text = format!(
        "listening on http://{address}\ndata and token in {}\ndeploy a function: hearth deploy DIR\n",
        data.display()
    );
    output::announce(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn printed_urls_can_be_reached() {
        for (listen, expected) in [
            ("127.0.0.1:80", Some("127.0.0.1:80")),
            ("[::1]:80", Some("[::1]:80")),
            ("0.0.0.0:80", None),
            ("[::]:80", None),
        ] {
            let told = reachable(listen.parse().expect("an address")).await;
            assert!(expected.is_none_or(|expected| told == expected), "{listen}: {told}");
            assert!(!told.starts_with("0.0.0.0") && !told.starts_with("[::]"), "{listen}: {told}");
            assert!(told.ends_with(":80"), "{told}");
        }
    }
}
