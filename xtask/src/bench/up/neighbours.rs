//! Calls of a function whose neighbours do harm: what they take from it.

use std::{thread, time::Duration};

use anyhow::ensure;
use serde_json::json;
use tokio::time::Instant;

use super::daemon::{Daemon, Options, Source, names};
use crate::{
    bench::{
        Effort,
        language::Language,
        report::{Column, Comparison, FAILED, Operation, Question},
        rounds::{Contender, interleave},
        servers::{Site, exchange},
    },
    load::{self, Plan},
    schedule::Pace,
};

const CALLS_PER_SECOND: f64 = 250.0;
const CONNECTIONS: usize = 4;
const INNOCENT: &str = "innocent";
/// How long after they were told to the neighbours are at work, all of them.
const GATHER: Duration = Duration::from_millis(600);
/// How long a neighbour's work goes on after a round, at most.
const SPARE: Duration = Duration::from_millis(400);

const QUIET: &str = "quiet";
/// What neighbours do, and how many of them.
const HARM: [(&str, &str, usize); 3] = [
    ("ten write frames", "frames", 10),
    ("ten write lines", "lines", 10),
    ("eighty endless loops", "hog", 80),
];

const COLUMNS: &[Column] = &[
    Column { key: "p50_ms", heading: "p50 ms", decimals: 2 },
    Column { key: "p90_ms", heading: "p90 ms", decimals: 2 },
    Column { key: "p99_ms", heading: "p99 ms", decimals: 2 },
    FAILED,
];

/// Answers the question about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let name = format!("up-neighbours-{}", language.name);
    let most = HARM.iter().map(|(_, _, count)| *count).max().unwrap_or_default();
    let neighbours = names(most);
    let started = start(site, language, &name, &neighbours);
    let started = started.as_ref().map_err(|reason| format!("{reason:#}"));
    let contender = |label: &'static str, work: Option<(&'static str, usize)>| match &started {
        Err(reason) => Contender::skipped(label, reason),
        Ok(daemon) => {
            let neighbours = &neighbours;
            Contender::new(label, move || {
                let (work, count) = work.unwrap_or(("", 0));
                let until = Instant::now() + GATHER + effort.round + SPARE;
                for neighbour in &neighbours[..count] {
                    begin(daemon, neighbour, work, until)?;
                }
                if count > 0 {
                    thread::sleep(GATHER);
                }
                let figures = call(daemon, effort.round);
                thread::sleep(until.saturating_duration_since(Instant::now()) + SPARE);
                figures
            })
        }
    };
    let quiet = contender(QUIET, None);
    let harmed = HARM.iter().map(|(label, work, count)| contender(label, Some((work, *count))));
    let compared = |key| Comparison { key, operation: Operation::Ratio, to: QUIET };
    answer(Question {
        name,
        title: format!(
            "A function whose neighbours do harm, {}, {CALLS_PER_SECOND} calls a second",
            language.title
        ),
        columns: COLUMNS,
        comparisons: vec![compared("p50_ms"), compared("p99_ms")],
        rows: interleave(effort.rounds, [quiet].into_iter().chain(harmed).collect()),
    });
    Ok(())
}

/// A platform with the function and its neighbours, each with an instance.
fn start(
    site: &Site,
    language: &Language,
    name: &str,
    neighbours: &[String],
) -> anyhow::Result<Daemon> {
    let max_instances = Some(u32::try_from(neighbours.len())? + 20);
    let daemon = Daemon::start(site, name, Options { max_instances, ..Options::default() })?;
    let settings = json!({ "memory": "64MiB", "idle": "1h", "min": 1, "max": 1 });
    daemon.deploy_all(neighbours, &Source::of_neighbour(site)?, &settings)?;
    let settings = json!({ "idle": "1h", "min": 1, "max": 1 });
    daemon.deploy(INNOCENT, &Source::of(site, language)?, &settings)?;
    call(&daemon, Duration::from_secs(1))?;
    Ok(daemon)
}

/// Has a neighbour do harm until then.
fn begin(daemon: &Daemon, neighbour: &str, work: &str, until: Instant) -> anyhow::Result<()> {
    let seconds = until.saturating_duration_since(Instant::now()).as_secs_f64();
    let path = format!("/fn/{neighbour}/?as={work}&seconds={seconds:.1}");
    let (target, request) = daemon.endpoint.request(&path, &[])?;
    let answer = exchange(&target, &request)?;
    ensure!(answer.reply.status == 200, "a neighbour answered {}", answer.reply.status);
    Ok(())
}

fn call(daemon: &Daemon, duration: Duration) -> anyhow::Result<Vec<f64>> {
    let (target, request) = daemon.call(INNOCENT)?;
    let outcome = load::run(&Plan {
        address: target.address,
        requests: vec![request],
        connections: CONNECTIONS,
        duration,
        pace: Pace::Open { per_second: CALLS_PER_SECOND },
        core: None,
    })?;
    let summary = outcome.latencies.summary();
    Ok(vec![
        summary.p50_us / 1e3,
        summary.p90_us / 1e3,
        summary.p99_us / 1e3,
        outcome.failures.total().into(),
    ])
}
