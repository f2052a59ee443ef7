//! Repository chores: `cargo xtask bench` measures, `cargo xtask load` puts load on one URL.

mod affinity;
mod bench;
mod http;
mod latency;
mod load;
mod schedule;

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::{load::Plan, schedule::Pace};

/// Repository chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Measures Hearth beside its peers and prints a table for each question
    Bench(bench::Arguments),
    /// Puts load on one URL and prints what came of it
    Load(LoadArguments),
}

#[derive(Debug, Args)]
struct LoadArguments {
    /// What to ask for, `http://HOST:PORT/PATH`
    url: String,
    /// Connections, each with at most one request in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// How long to send requests
    #[arg(long, default_value_t = 3.0, value_parser = positive)]
    seconds: f64,
    /// Requests a second on a fixed timetable, instead of one after the other
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// A header to send, `name: value`
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The processor to stay on
    #[arg(long)]
    core: Option<usize>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e7 => Ok(number),
        _ => Err("expected a number above 0 and up to 10 million".to_owned()),
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Bench(arguments) => bench::run(arguments).map(|()| ExitCode::SUCCESS),
        Chore::Load(arguments) => put_load(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Fails, after printing the figures, if a request failed.
fn put_load(arguments: &LoadArguments) -> anyhow::Result<ExitCode> {
    let target = http::Target::parse(&arguments.url)?;
    let plan = Plan {
        address: target.address,
        requests: vec![target.request(&arguments.headers)],
        connections: usize::from(arguments.connections),
        duration: Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?,
        pace: arguments.rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second }),
        core: arguments.core,
    };
    let outcome = load::run(&plan)?;
    let figures = outcome.latencies.summary();
    println!("{:.0} replies/s, {} in all", outcome.per_second(), outcome.latencies.count());
    println!(
        "p50 {:.1} µs  p90 {:.1} µs  p99 {:.1} µs  p99.9 {:.1} µs  max {:.1} µs",
        figures.p50_us, figures.p90_us, figures.p99_us, figures.p999_us, figures.max_us
    );
    if outcome.failures.total() == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    println!("FAILED REQUESTS: {:?}", outcome.failures);
    Ok(ExitCode::FAILURE)
}
