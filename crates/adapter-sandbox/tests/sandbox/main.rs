//! The adapter against the real kernel: as root, and again without.
//!
//! A test program of its own kind: started with `__launcher` it is the launcher of an adapter, and
//! with `__drill` a daemon that is about to be killed.

mod conformance;
mod counters;
mod drills;
mod egress;
mod ends;
mod escape;
mod internet;
mod lab;
mod limits;
mod network;
mod probe;
mod shared;
mod watching;
mod world;
mod zygote;

use std::{
    env,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    time::Duration,
};

use lab::{Lab, Outcome};

/// No test needs long; one that hangs is wrong.
const LIMIT: Duration = Duration::from_secs(60);

const NOBODY: u32 = 65534;

/// How workers begin.
#[derive(Clone, Copy)]
enum Way {
    Started,
    Forked,
}

type Test = (&'static str, fn(Lab) -> lab::Future);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("__launcher") => return adapter_sandbox::launcher_main(),
        Some("__echo") => {
            println!("{}", arguments[1]);
            return ExitCode::SUCCESS;
        }
        Some("__drill") => return drills::daemon(&arguments[1]),
        _ => {}
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let is_chosen = |(name, _): &Test| filter.is_none_or(|filter| name.contains(filter.as_str()));
    // What holds for workers that are started must hold for those that are forked.
    let of_workers = [
        conformance::TESTS,
        world::TESTS,
        counters::TESTS,
        watching::TESTS,
        escape::TESTS,
        limits::TESTS,
        network::TESTS,
        egress::OF_WORKERS,
        drills::OF_WORKERS,
        ends::OF_WORKERS,
        shared::TESTS,
    ]
    .concat();
    let others = [probe::TESTS, drills::TESTS, egress::TESTS, ends::OF_STARTED].concat();
    let started = of_workers.iter().chain(&others).map(|test| (test, Way::Started));
    let forked = of_workers
        .iter()
        .chain(zygote::TESTS)
        .chain(ends::OF_FORKED)
        .map(|test| (test, Way::Forked));
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for ((name, test), way) in started.chain(forked).filter(|(test, _)| is_chosen(test)) {
        match run(name, *test, way) {
            Some(Outcome::Passed) => passed += 1,
            Some(Outcome::Skipped(_)) => skipped += 1,
            None => failed += 1,
        }
    }
    println!("sandbox: {passed} passed, {failed} failed, {skipped} skipped ({})", user());
    let rootless = !rustix::process::getuid().is_root() || run_without_root(&arguments);
    if failed == 0 && rootless { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn user() -> &'static str {
    if rustix::process::getuid().is_root() { "root" } else { "rootless" }
}

/// Runs one test in a runtime of its own. A panic is its failure: none.
fn run(name: &str, test: fn(Lab) -> lab::Future, way: Way) -> Option<Outcome> {
    let user = match way {
        Way::Started => user().to_owned(),
        Way::Forked => format!("{}, forked", user()),
    };
    let outcome = std::panic::catch_unwind(|| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let opened = match way {
                Way::Started => Lab::open().await,
                Way::Forked => Lab::open_with_zygote().await,
            };
            let lab = match opened {
                Ok(lab) => lab,
                // Only a machine that lacks something is a reason to skip.
                Err(error) if adapter_sandbox::probe().is_enough() => panic!("{error}"),
                Err(error) => return Outcome::Skipped(error),
            };
            tokio::time::timeout(LIMIT, test(lab)).await.expect("ends in time")
        })
    });
    match &outcome {
        Ok(Outcome::Passed) => println!("ok: {name} ({user})"),
        Ok(Outcome::Skipped(reason)) => println!("skipped: {name} ({user}): {reason}"),
        Err(_) => println!("FAILED: {name} ({user})"),
    }
    outcome.ok()
}

/// The same tests as a user without any privilege, beside an owner that is root.
fn run_without_root(arguments: &[String]) -> bool {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let neighbour = runtime.block_on(Lab::open());
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).uid(NOBODY).gid(NOBODY).current_dir("/");
    let status = command.status();
    if let Ok(lab) = neighbour {
        runtime.block_on(lab.adapter.shutdown());
    }
    match status {
        Ok(status) => status.success(),
        Err(error) => {
            println!("skipped: everything rootless: {error}");
            true
        }
    }
}
