//! How long a launch takes, and how many instances a second can be made and removed.
//!
//! ```text
//! cargo run --release -p adapter-sandbox --example launches -- \
//!     [none|egress|host] [count] [at once] [sleep|python|zygote]
//! ```
//!
//! `python` and `zygote` launch Python's worker, started and forked, and wait for its hello. They also
//! say what twenty of them that wait use, and how much processor time each took, all processes
//! together.

use std::{
    env, fs,
    io::Read,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use adapter::Adapter;
use adapter_sandbox::{Config, SandboxAdapter};
use model::{InstanceId, InstanceSocket, LaunchSpec, Limits, Network};
use tokio::time::Instant;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|argument| argument == "__launcher") {
        return adapter_sandbox::launcher_main();
    }
    let text = |at: usize, otherwise: &'static str| {
        arguments.get(at).map_or(otherwise, String::as_str).to_owned()
    };
    let network: Network = text(0, "none").parse().expect("a network");
    let count: usize = text(1, "500").parse().expect("a number");
    let at_once: usize = text(2, "4").parse().expect("a number");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure(network, count, at_once, &text(3, "sleep")));
    ExitCode::SUCCESS
}

/// What is launched.
struct Subject {
    directory: PathBuf,
    spec: LaunchSpec,
    says_hello: bool,
}

impl Subject {
    fn new(directory: &Path, network: Network, what: &str) -> Self {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let worker =
            words(&["/usr/bin/python3.11", "-I", "-S", "-X", "utf8", "{server}/src/worker.py"]);
        let zygote = [worker.clone(), words(&["--zygote"])].concat();
        let server = directory.join("server");
        let says_hello = what != "sleep";
        if says_hello {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtimes/python");
            fs::create_dir_all(directory).expect("a directory");
            std::os::unix::fs::symlink(source, &server).expect("the runtime");
        } else {
            fs::create_dir_all(server.join("src/function")).expect("a runtime");
        }
        let spec = LaunchSpec {
            id: "subject".parse::<InstanceId>().expect("an id"),
            command: if says_hello { worker } else { words(&["/bin/sleep", "1000"]) },
            zygote: (what == "zygote").then_some(zygote),
            environment: vec![("LANG".into(), "C.UTF-8".into())],
            server,
            programs: Vec::new(),
            limits: Limits::default(),
            network,
            socket: None,
        };
        Self { directory: directory.into(), spec, says_hello }
    }

    fn prepare(&self, name: &str) -> (LaunchSpec, Option<UnixListener>) {
        let mut spec = self.spec.clone();
        spec.id = name.parse().expect("an id");
        if !self.says_hello {
            return (spec, None);
        }
        let place = self.directory.join(name);
        fs::create_dir(&place).expect("a directory");
        let path = place.join("worker.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        spec.socket = Some(InstanceSocket { variable: "HEARTH_SOCKET".into(), path });
        (spec, Some(listener))
    }

    /// Launches one, and waits until it is there. Keeps its connection.
    async fn launch(&self, adapter: &SandboxAdapter, name: &str) -> Option<impl Read + use<>> {
        let (spec, listener) = self.prepare(name);
        adapter.launch(&spec, None).await.expect("launch");
        let hello = listener.map(|listener| {
            tokio::task::spawn_blocking(move || {
                let (mut connection, _) = listener.accept().expect("a connection");
                connection.read_exact(&mut [0; 5]).expect("a hello");
                connection
            })
        });
        match hello {
            Some(hello) => Some(hello.await.expect("no panic")),
            None => None,
        }
    }

    async fn stop(&self, adapter: &SandboxAdapter, name: &str) {
        adapter.stop(&name.parse().expect("an id"), Duration::ZERO).await.expect("stop");
        let _ = fs::remove_dir_all(self.directory.join(name));
    }
}

async fn measure(network: Network, count: usize, at_once: usize, what: &str) {
    let directory = env::temp_dir().join(format!("hearth-launches-{}", std::process::id()));
    let subject = Arc::new(Subject::new(&directory, network, what));
    let launcher = vec!["/proc/self/exe".into(), "__launcher".into()];
    let adapter = SandboxAdapter::start(Config::new(directory.join("state"), launcher)).await;
    let adapter = Arc::new(adapter.expect("an adapter"));

    let (mut launches, mut stops) = (Vec::new(), Vec::new());
    for number in 0..count {
        let name = format!("one-{number}");
        let start = Instant::now();
        let _connection = subject.launch(&adapter, &name).await;
        launches.push(start.elapsed());
        let start = Instant::now();
        subject.stop(&adapter, &name).await;
        stops.push(start.elapsed());
    }
    report("launch, one at a time", &mut launches[count / 10..]);
    report("stop, one at a time", &mut stops[count / 10..]);

    let start = Instant::now();
    let workers = (0..at_once).map(|worker| {
        let (adapter, subject) = (Arc::clone(&adapter), Arc::clone(&subject));
        tokio::spawn(async move {
            for number in 0..count / at_once {
                let name = format!("w{worker}-{number}");
                let _connection = subject.launch(&adapter, &name).await;
                subject.stop(&adapter, &name).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("no panic");
    }
    let rate = (count / at_once * at_once) as f64 / start.elapsed().as_secs_f64();
    println!("{at_once} at once: {rate:.0} instances a second");
    if subject.says_hello {
        weigh(&subject, &adapter).await;
    }
    adapter.shutdown().await;
    let each = processor_time() / u32::try_from(count + count / at_once * at_once).expect("few");
    println!("processor time of all processes for each: {each:?}");
    fs::remove_dir_all(&directory).expect("only the runtime is left");
}

/// What twenty use that wait, once they have prepared themselves.
async fn weigh(subject: &Subject, adapter: &SandboxAdapter) {
    let mut connections = Vec::new();
    for number in 0..20 {
        connections.push(subject.launch(adapter, &format!("waiting-{number}")).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sizes = |field: &str| {
        let mut sizes: Vec<u64> = worker_files("smaps_rollup")
            .iter()
            .filter_map(|text| text.lines().find_map(|line| line.strip_prefix(field)))
            .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
            .collect();
        sizes.sort_unstable();
        (sizes.len(), sizes[sizes.len() / 2])
    };
    for field in ["Pss:", "Private_Dirty:", "Rss:"] {
        let (count, median) = sizes(field);
        println!("{field} median {median} KiB of {count} processes with Python");
    }
    for number in 0..20 {
        subject.stop(adapter, &format!("waiting-{number}")).await;
    }
}

fn worker_files(name: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_worker = |place: &PathBuf| {
        let command = fs::read_to_string(place.join("cmdline")).unwrap_or_default();
        command.contains("/usr/local/server/src/worker.py")
    };
    let places = processes.map(|entry| entry.path()).filter(is_worker);
    places.filter_map(|place| fs::read_to_string(place.join(name)).ok()).collect()
}

/// Of all that this process has waited for: the launcher, and what that has waited for.
fn processor_time() -> Duration {
    let line = fs::read_to_string("/proc/self/stat").expect("readable");
    let fields = line.rsplit_once(')').expect("a name").1;
    let ticks = fields.split_whitespace().skip(13).take(2);
    let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}", at(50), at(90), at(99));
}
