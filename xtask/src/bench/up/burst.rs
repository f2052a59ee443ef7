//! Many calls at once of a function that has no instance.

use std::time::Duration;

use serde_json::json;

use super::daemon::{Daemon, Options, Source};
use crate::{
    bench::{
        Effort,
        language::Language,
        report::{Column, FAILED, Question},
        rounds::{Contender, interleave},
        servers::Site,
    },
    load::{self, Plan},
    schedule::Pace,
};

/// How many calls come at once, each on a connection of its own.
const CALLS: u16 = 200;
/// How many of them an instance takes.
const CONCURRENCY: u32 = 50;
/// How long the last reply may take.
const PATIENCE: Duration = Duration::from_secs(20);
const FUNCTION: &str = "hello";

const COLUMNS: &[Column] = &[
    Column { key: "last_ms", heading: "last reply ms", decimals: 1 },
    Column { key: "p50_ms", heading: "p50 ms", decimals: 1 },
    Column { key: "from_spare", heading: "from spare", decimals: 0 },
    Column { key: "launched", heading: "launched", decimals: 0 },
    FAILED,
];

/// Answers the question about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let name = format!("up-burst-{}", language.name);
    let label = "hearth up";
    let contender = match start(site, language, &name) {
        Ok(daemon) => Contender::new(label, move || burst(&daemon)),
        Err(reason) => Contender::skipped(label, format!("{reason:#}")),
    };
    answer(Question {
        name,
        title: format!(
            "{CALLS} calls at once of a function without an instance, {}, {CONCURRENCY} calls to \
             an instance, {} bursts",
            language.title, effort.bursts
        ),
        columns: COLUMNS,
        comparisons: Vec::new(),
        rows: interleave(effort.bursts, vec![contender]),
    });
    Ok(())
}

fn start(site: &Site, language: &Language, name: &str) -> anyhow::Result<Daemon> {
    let daemon = Daemon::start(site, name, Options::default())?;
    let settings = json!({ "idle": "100ms", "concurrency": CONCURRENCY });
    daemon.deploy(FUNCTION, &Source::of(site, language)?, &settings)?;
    Ok(daemon)
}

fn burst(daemon: &Daemon) -> anyhow::Result<Vec<f64>> {
    daemon.until_idle()?;
    daemon.until_spare()?;
    let before = daemon.started()?;
    let (target, request) = daemon.call(FUNCTION)?;
    let outcome = load::run(&Plan {
        address: target.address,
        requests: vec![request],
        connections: usize::from(CALLS),
        duration: PATIENCE,
        pace: Pace::AtOnce { requests: u32::from(CALLS) },
        core: None,
    })?;
    let started = daemon.started()?.since(before);
    Ok(vec![
        outcome.elapsed.as_secs_f64() * 1e3,
        outcome.latencies.summary().p50_us / 1e3,
        started.from_spare,
        started.from_nothing,
        outcome.failures.total().into(),
    ])
}
