//! Runs the cases in `cases/` on every flavour that this machine has an interpreter for.
//!
//! `cargo test -p conformance --test cases -- node/response` runs those whose name contains that.

use std::{
    collections::HashMap,
    env,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use conformance::{
    case::Case,
    flavour::Flavour,
    server::{Server, Settings},
};

/// Servers at once. Most of a case's time is spent in starting one.
const WORKERS: usize = 4;

/// Cases that one server can answer.
struct Job {
    flavour: &'static Flavour,
    settings: Settings,
    cases: Vec<Case>,
}

fn main() -> ExitCode {
    let filter = env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let jobs = jobs(filter.as_deref().unwrap_or_default()).expect("every file is a case");
    if env::args().any(|argument| argument == "--list") {
        for (job, case) in jobs.iter().flat_map(|job| job.cases.iter().map(move |case| (job, case)))
        {
            println!("{}/{}: test", job.flavour.name, case.name);
        }
        return ExitCode::SUCCESS;
    }
    let (run, failed) = run(jobs);
    println!("\ncases: {} passed; {failed} failed\n", run - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn jobs(filter: &str) -> anyhow::Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for flavour in Flavour::available() {
        let mut by_settings: HashMap<Settings, Vec<Case>> = HashMap::new();
        for case in Case::all(flavour)? {
            if format!("{}/{}", flavour.name, case.name).contains(filter) {
                by_settings.entry(case.settings.clone()).or_default().push(case);
            }
        }
        let of_flavour = by_settings.into_iter();
        jobs.extend(of_flavour.map(|(settings, cases)| Job { flavour, settings, cases }));
    }
    Ok(jobs)
}

/// Returns how many cases were run, and how many of them failed.
fn run(jobs: Vec<Job>) -> (usize, usize) {
    let (run, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().expect("no panic while the lock is held").pop();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(job) = next() {
                    run.fetch_add(job.cases.len(), Ordering::Relaxed);
                    failed.fetch_add(job.run(), Ordering::Relaxed);
                }
            });
        }
    });
    (run.into_inner(), failed.into_inner())
}

impl Job {
    /// Returns how many cases failed.
    fn run(&self) -> usize {
        let server = Server::start(self.flavour, &self.settings);
        self.cases.iter().filter(|case| !self.holds(case, &server)).count()
    }

    fn holds(&self, case: &Case, server: &Server) -> bool {
        let complaints = case.run(server);
        let verdict = if complaints.is_empty() { "ok" } else { "FAILED" };
        let mut report = format!("case {}/{} ... {verdict}", self.flavour.name, case.name);
        for complaint in &complaints {
            report.push_str(&format!("\n    {complaint}"));
        }
        println!("{report}");
        complaints.is_empty()
    }
}
