//! How long a launch takes, and how many instances a second can be made and removed.
//!
//! ```text
//! cargo run --release -p adapter-sandbox --example launches -- [none|egress|host] [count] [at once]
//! ```

use std::{env, fs, process::ExitCode, sync::Arc, time::Duration};

use adapter::Adapter;
use adapter_sandbox::{Config, SandboxAdapter};
use model::{InstanceId, LaunchSpec, Limits, Network};
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
    runtime.block_on(measure(network, count, at_once));
    ExitCode::SUCCESS
}

async fn measure(network: Network, count: usize, at_once: usize) {
    let directory = env::temp_dir().join(format!("hearth-launches-{}", std::process::id()));
    let server = directory.join("server");
    fs::create_dir_all(server.join("src/function")).expect("a runtime");
    let launcher = vec!["/proc/self/exe".into(), "__launcher".into()];
    let adapter = SandboxAdapter::start(Config::new(directory.join("state"), launcher)).await;
    let adapter = Arc::new(adapter.expect("an adapter"));
    let spec = |id: String| LaunchSpec {
        id: id.parse::<InstanceId>().expect("an id"),
        command: vec!["/bin/sleep".into(), "1000".into()],
        zygote: None,
        environment: Vec::new(),
        server: server.clone(),
        programs: Vec::new(),
        limits: Limits::default(),
        network,
        socket: None,
    };

    let (mut launches, mut stops) = (Vec::new(), Vec::new());
    for number in 0..count {
        let spec = spec(format!("one-{number}"));
        let start = Instant::now();
        adapter.launch(&spec, None).await.expect("launch");
        launches.push(start.elapsed());
        let start = Instant::now();
        adapter.stop(&spec.id, Duration::ZERO).await.expect("stop");
        stops.push(start.elapsed());
    }
    report("launch, one at a time", &mut launches[count / 10..]);
    report("stop, one at a time", &mut stops[count / 10..]);

    let start = Instant::now();
    let workers = (0..at_once).map(|worker| {
        let adapter = Arc::clone(&adapter);
        let specs: Vec<_> =
            (0..count / at_once).map(|number| spec(format!("w{worker}-{number}"))).collect();
        tokio::spawn(async move {
            for spec in specs {
                adapter.launch(&spec, None).await.expect("launch");
                adapter.stop(&spec.id, Duration::ZERO).await.expect("stop");
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("no panic");
    }
    let rate = (count / at_once * at_once) as f64 / start.elapsed().as_secs_f64();
    println!("{at_once} at once: {rate:.0} instances a second");
    adapter.shutdown().await;
    fs::remove_dir_all(&directory).expect("only the runtime is left");
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}", at(50), at(90), at(99));
}
