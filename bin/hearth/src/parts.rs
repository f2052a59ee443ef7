//! The parts that `hearth serve` and `hearth up` are both made of.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use adapter::Adapter;
use adapter_process::ProcessAdapter;
use adapter_sandbox::{LastingSandboxAdapter, Subnet};
use edge::ServerLimits;
use executor::Template;
use model::{Capacity, LaunchSpec, Limits, Network};
use protocol_worker::WorkerConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    exit::{Failure, Fatal},
    output,
    runtimes::{Interpreter, Runtime, SYSTEM_PATH},
    state::{self, OwnedDirectory},
    trial,
};

/// The hidden first argument that makes the program a sandbox launcher.
pub(crate) const LAUNCHER: &str = "__launcher";
/// How long the code of a function may take to load.
pub(crate) const BIND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long running calls may take when the program ends.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a worker may take to give up a call whose time is over.
const PATIENCE: Duration = Duration::from_millis(250);

/// Reads `NAME=value`.
pub(crate) fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=value")?;
    model::check_variable(name).map_err(|error| error.to_string())?;
    Ok((name.into(), value.into()))
}

/// Reads an instance's memory, of which this machine must have as much.
pub(crate) fn parse_memory(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 16 << 20;
    let bytes = model::parse_size(text).map_err(|error| error.to_string())?;
    let most = machine().memory_bytes;
    match bytes {
        ..LEAST => Err("no runtime starts with less than 16MiB".into()),
        _ if bytes > most => Err(format!("this machine has {}", model::format_size(most))),
        _ => Ok(bytes),
    }
}

/// Reads an instance's processors, of which this machine must have as many.
pub(crate) fn parse_cpus_milli(text: &str) -> Result<u32, String> {
    let milli = model::parse_cpus_milli(text).map_err(|error| error.to_string())?;
    let most = machine().cpus_milli;
    if milli > most {
        return Err(format!("this machine has {}", model::format_cpus(most)));
    }
    Ok(milli)
}

/// Reads a whole number within a range.
pub(crate) fn whole(
    range: RangeInclusive<u32>,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let (least, most) = (range.start(), range.end());
        number.ok_or_else(|| format!("write a whole number from {least} to {most}"))
    }
}

/// Reads where to listen: an address or a name, and a port. Where a name has several addresses, one
/// of version 4 comes first. Waits for the system to look the name up.
pub(crate) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let addresses = match text.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err("write it like `127.0.0.1:8080` or `localhost:8080`".into());
        }
        Err(error) => return Err(format!("the name has no address here ({error})")),
    };
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.first().copied().ok_or_else(|| "the name has no address here".into())
}

/// What this machine has, and so the most that an instance can have.
pub(crate) fn machine() -> Capacity {
    let processors = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    Capacity {
        memory_bytes: rustix::system::sysinfo().totalram,
        cpus_milli: processors.max(1) * 1000,
    }
}

/// Each connection needs a descriptor, and the usual soft limit of 1024 is for programs that use
/// `select`. Failing that, fewer connections are accepted at once: see [`connections`].
pub(crate) fn allow_many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Descriptors for the program's own work: its databases, logs, builds and uploads.
const OWN_DESCRIPTORS: u64 = 256;
/// Descriptors for an instance: its socket, its output, its process.
const DESCRIPTORS_OF_INSTANCE: u64 = 4;
/// Fewer connections than this are worth a word.
const FEW_CONNECTIONS: usize = 1000;

/// How many connections may be open at once, by the limit of open files: what is left beside the
/// program's own work and its instances, but no less than a quarter. Without that, connections
/// that do nothing would take what deploys and cold starts need.
pub(crate) fn connections(instances: u32) -> usize {
    connections_within(getrlimit(Resource::Nofile).current, instances)
}

fn connections_within(descriptors: Option<u64>, instances: u32) -> usize {
    let usual = ServerLimits::default().connections;
    let Some(descriptors) = descriptors else { return usual };
    let reserve = OWN_DESCRIPTORS + DESCRIPTORS_OF_INSTANCE * u64::from(instances);
    let left = descriptors.saturating_sub(reserve).max(descriptors / 4).max(1);
    usize::try_from(left).map_or(usual, |left| left.min(usual))
}

/// What is to be said of so few connections, if they are few.
pub(crate) fn few_connections(connections: usize) -> Option<String> {
    let limit = getrlimit(Resource::Nofile).current?;
    (connections < FEW_CONNECTIONS).then(|| {
        format!(
            "at most {connections} connections are kept open at once, since the limit of open \
             files is {limit}; allow more with `ulimit -n` or LimitNOFILE"
        )
    })
}

/// The first signal asks for an orderly end, the second for an end.
pub(crate) struct Signals {
    pub(crate) stop: CancellationToken,
    pub(crate) hurry: CancellationToken,
}

impl Signals {
    pub(crate) fn listen() -> anyhow::Result<Self> {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AdapterName {
    /// Linux namespaces, cgroups and seccomp.
    Sandbox,
    /// Plain processes: no isolation, for development.
    Process,
}

/// An adapter with what the program must know of it beyond the trait. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Chosen {
    Sandbox(Arc<LastingSandboxAdapter>),
    Process(Arc<ProcessAdapter>),
}

/// How the sandbox is set up on this machine.
pub(crate) fn sandbox_config(surroundings: Surroundings) -> adapter_sandbox::Config {
    let launcher = vec!["/proc/self/exe".into(), LAUNCHER.into()];
    let state = state::runtime_parent().join("sandbox");
    adapter_sandbox::Config {
        memory_reserve: surroundings.memory_reserve,
        allowed_networks: surroundings.allowed_networks,
        untracked_ports: surroundings.own_port.into_iter().collect(),
        ..adapter_sandbox::Config::new(state, launcher)
    }
}

/// What the sandbox must know of the machine around it.
#[derive(Default)]
pub(crate) struct Surroundings {
    /// How much of the host's memory instances leave alone; the usual share if none is given.
    pub(crate) memory_reserve: Option<u64>,
    /// What instances may reach although it is not public.
    pub(crate) allowed_networks: Vec<Subnet>,
    /// Where the program itself listens, if that is known already.
    pub(crate) own_port: Option<u16>,
}

/// The most ranges that can be opened: rules are read by people, too.
pub(crate) const MOST_ALLOWED_NETWORKS: usize = 256;

/// What is wrong with the ranges that are to be opened, if anything is.
pub(crate) fn mistake_in_networks(adapter: AdapterName, allowed: &[Subnet]) -> Option<String> {
    if !allowed.is_empty() && adapter == AdapterName::Process {
        return Some(
            "allow-network has no meaning for the adapter `process`: functions reach whatever the \
             host reaches"
                .into(),
        );
    }
    (allowed.len() > MOST_ALLOWED_NETWORKS)
        .then(|| format!("allow-network may be given at most {MOST_ALLOWED_NETWORKS} times"))
}

/// Says what was opened to instances.
pub(crate) fn tell_of_networks(allowed: &[Subnet]) {
    if !allowed.is_empty() {
        let ranges: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        eprintln!(
            "note: instances with the network `egress` also reach {}, but for this host's own \
             addresses and other instances",
            ranges.join(", ")
        );
    }
}

/// How workers are spoken to, through sockets in a directory.
pub(crate) fn worker_config(sockets: &OwnedDirectory) -> anyhow::Result<WorkerConfig> {
    Ok(WorkerConfig {
        directory: sockets.subdirectory("sockets")?,
        hello_timeout: READY_TIMEOUT,
        patience: PATIENCE,
        instance_logs: Arc::new(output::of_instance),
    })
}

/// What all instances of a runtime have in common.
pub(crate) fn template(
    runtime: &Runtime,
    interpreter: &Interpreter,
    server: PathBuf,
    limits: Limits,
    network: Network,
) -> Template {
    let usual = [("PATH", SYSTEM_PATH), ("HOME", "/tmp"), ("LANG", "C.UTF-8")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let own = runtime.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    let spec = LaunchSpec {
        id: runtime.name.instance_prefix(),
        command: runtime.command(interpreter),
        zygote: runtime.zygote(interpreter),
        environment: usual.into_iter().chain(own).collect(),
        server,
        programs: interpreter.prefix.iter().cloned().collect(),
        limits,
        network,
        socket: None,
    };
    Template { runtime: runtime.name.clone(), spec, ready_timeout: READY_TIMEOUT }
}

impl Chosen {
    pub(crate) async fn start(
        name: AdapterName,
        data: &OwnedDirectory,
        surroundings: Surroundings,
    ) -> anyhow::Result<Self> {
        match name {
            AdapterName::Process => {
                let adapter = ProcessAdapter::start(data.subdirectory(state::PROCESSES)?)?;
                Ok(Self::Process(Arc::new(adapter)))
            }
            AdapterName::Sandbox => {
                let started = LastingSandboxAdapter::start(sandbox_config(surroundings)).await;
                let adapter = started.map_err(trial::failure)?;
                Ok(Self::Sandbox(Arc::new(adapter)))
            }
        }
    }

    /// The network that instances get, once one instance with it has been launched: a machine
    /// where none works is found out before anybody is promised anything.
    pub(crate) async fn prove(
        &self,
        own: &OwnedDirectory,
        asked: Option<Network>,
    ) -> anyhow::Result<Network> {
        let proven = self.try_prove(own, asked).await;
        if proven.is_err() {
            self.shut_down().await;
        }
        proven
    }

    async fn try_prove(
        &self,
        own: &OwnedDirectory,
        asked: Option<Network>,
    ) -> anyhow::Result<Network> {
        let network = self.network(asked)?;
        if let Self::Sandbox(adapter) = self {
            let tried = trial::run(&**adapter, &own.subdirectory("trial")?, network).await;
            tried.map_err(trial::failure)?;
        }
        Ok(network)
    }

    pub(crate) fn name(&self) -> AdapterName {
        match self {
            Self::Sandbox(_) => AdapterName::Sandbox,
            Self::Process(_) => AdapterName::Process,
        }
    }

    pub(crate) fn adapter(&self) -> Arc<dyn Adapter> {
        match self {
            Self::Sandbox(adapter) => adapter.clone(),
            Self::Process(adapter) => adapter.clone(),
        }
    }

    /// The network that instances get. What the user asked for is never replaced silently: where
    /// there is no such network, nothing is started.
    pub(crate) fn network(&self, asked: Option<Network>) -> anyhow::Result<Network> {
        match (self, asked) {
            (_, Some(asked)) => match self.lacks(asked) {
                None => Ok(asked),
                Some(why) => Err(Fatal::new(Failure::Unavailable, why).into()),
            },
            (Self::Process(_), None) => Ok(Network::Host),
            // Why there is none is among its weaknesses.
            (Self::Sandbox(adapter), None) => match adapter.no_egress() {
                None => Ok(Network::Egress),
                Some(_) => Ok(Network::None),
            },
        }
    }

    /// Says so if that many instances with the usual memory need more than there is for them.
    pub(crate) fn overcommitment(&self, instances: u32) -> Option<String> {
        let limited = match self {
            Self::Sandbox(adapter) => adapter.memory_bytes(),
            Self::Process(_) => None,
        };
        overcommitment(instances, limited, machine_memory())
    }

    /// Why instances cannot have a network here, and what to do; none if they can.
    pub(crate) fn lacks(&self, network: Network) -> Option<String> {
        match (self, network) {
            (Self::Sandbox(adapter), Network::Egress) => adapter.no_egress().map(|why| {
                format!(
                    "there is no network `egress` here: {why}; ask for the network `none` or \
                     `host`, or see what `hearth doctor` says"
                )
            }),
            (Self::Sandbox(_), Network::None | Network::Host)
            | (Self::Process(_), Network::Host) => None,
            (Self::Process(_), Network::None | Network::Egress) => Some(format!(
                "there is no network `{network}` here: the adapter `process` does not isolate \
                 functions; ask for the network `host`, or use the adapter `sandbox`"
            )),
        }
    }

    pub(crate) fn weaknesses(&self) -> Vec<String> {
        match self {
            Self::Sandbox(adapter) => adapter.weaknesses(),
            Self::Process(_) => vec!["the adapter `process` does not isolate functions".into()],
        }
    }

    pub(crate) async fn shut_down(&self) {
        match self {
            Self::Sandbox(adapter) => adapter.shutdown().await,
            Self::Process(_) => {}
        }
    }
}

/// In bytes.
fn machine_memory() -> u64 {
    let machine = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "a word, whose size is the machine's")]
    u64::from(machine.totalram).saturating_mul(machine.mem_unit.max(1).into())
}

fn overcommitment(instances: u32, limited: Option<u64>, machine: u64) -> Option<String> {
    let each = Limits::default().memory_bytes;
    let (all, room) = (u64::from(instances) * each, limited.unwrap_or(machine));
    let consequence = match limited {
        Some(_) => "when that is full, the largest instance ends",
        None => "nothing but the host's own memory limits them together",
    };
    (all > room).then(|| {
        format!(
            "{instances} instances (--max-instances) of {} MiB may need {} MiB, and there are {} \
             MiB for all of them: {consequence}",
            each >> 20,
            all >> 20,
            room >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_exceed_the_memory_are_said() {
        const GIB: u64 = 1 << 30;
        assert_eq!(overcommitment(4, Some(2 * GIB), 8 * GIB), None);
        assert_eq!(overcommitment(16, None, 8 * GIB), None);
        let said = overcommitment(5, Some(2 * GIB), 8 * GIB).expect("too many");
        assert!(said.contains("5 instances") && said.contains("2560 MiB"), "{said}");
        assert!(said.contains("2048 MiB") && said.contains("largest"), "{said}");
        let said = overcommitment(17, None, 8 * GIB).expect("too many");
        assert!(said.contains("8192 MiB") && said.contains("nothing"), "{said}");
    }

    #[test]
    fn connections_leave_descriptors_for_other_work() {
        for (descriptors, instances, expected) in [
            (None, 4096, 10_000),
            (Some(1_048_576), 200, 10_000),
            (Some(10_000), 100, 9344),
            (Some(1024), 32, 640),
            (Some(1024), 1000, 256), // not nothing
            (Some(256), 8, 64),
            (Some(1), 8, 1),
        ] {
            let connections = connections_within(descriptors, instances);
            assert_eq!(connections, expected, "{descriptors:?} {instances}");
        }
    }
}
