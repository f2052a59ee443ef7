//! What functions cost that exist and are not called: memory, the time of a restart, other calls.

use std::{path::PathBuf, thread, time::Duration};

use anyhow::Context;
use catalog::{Catalog, NewDeployment, SqliteCatalog};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::daemon::{Daemon, Options, Source, names};
use crate::{
    bench::{
        Effort,
        language::Language,
        memory::resident_kib,
        report::{Column, Comparison, FAILED, Operation, Question},
        rounds::{Contender, interleave},
        servers::{Site, ask},
    },
    load::{self, Plan},
    schedule::Pace,
};

/// Until a daemon that has just started does nothing more.
const SETTLE: Duration = Duration::from_secs(1);
const ALONE: &str = "1 function";

const COLUMNS: &[Column] = &[
    Column { key: "restart_ms", heading: "restart ms", decimals: 0 },
    Column { key: "idle_kib", heading: "idle RSS KiB", decimals: 0 },
    Column { key: "cold_ms", heading: "first call ms", decimals: 1 },
    Column { key: "p50_us", heading: "warm p50 µs", decimals: 1 },
    Column { key: "p99_us", heading: "p99 µs", decimals: 0 },
    FAILED,
];

/// Answers the question about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let lanes = [1, effort.registered].map(|count| {
        let label = if count == 1 { ALONE.to_owned() } else { format!("{count} functions") };
        (label, Lane::fill(site, language, count))
    });
    let contenders = lanes.iter().map(|(label, lane)| match lane {
        Ok(lane) => Contender::new(label, move || lane.restart(site, effort)),
        Err(reason) => Contender::skipped(label, format!("{reason:#}")),
    });
    answer(Question {
        name: format!("up-registered-{}", language.name),
        title: format!("Functions that are not called, {}, daemon restarted", language.title),
        columns: COLUMNS,
        comparisons: ["idle_kib", "p50_us"]
            .map(|key| Comparison { key, operation: Operation::Difference, to: ALONE })
            .to_vec(),
        rows: interleave(effort.rounds, contenders.collect()),
    });
    Ok(())
}

/// A data directory with functions.
struct Lane {
    name: String,
    data: PathBuf,
    functions: Vec<String>,
}

impl Lane {
    fn fill(site: &Site, language: &Language, count: usize) -> anyhow::Result<Self> {
        let name = format!("up-registered-{}-{count}", language.name);
        let data = site.stage.memory().join(format!("{name}.data"));
        let functions = names(count);
        let daemon = Daemon::start_on(site, &name, &data, Options::default())?;
        daemon.deploy(&functions[0], &Source::of(site, language)?, &json!({}))?;
        drop(daemon);
        let lane = Self { name, data, functions };
        lane.copy().context("fill the catalog")?;
        Ok(lane)
    }

    /// Writes the others into the catalog as the daemon does: starting every single one once, as it
    /// would when they are deployed, takes minutes and changes nothing that is measured here.
    fn copy(&self) -> anyhow::Result<()> {
        let catalog = SqliteCatalog::open(&self.data)?;
        let (first, others) = self.functions.split_first().context("there is a first")?;
        let first = catalog.function(&first.parse()?)?.context("it was deployed")?;
        let artifact = first.active.artifact.context("it was built")?;
        for name in others {
            let id = Uuid::now_v7();
            catalog.begin(&NewDeployment {
                id,
                function: name.parse()?,
                runtime: first.active.runtime.clone(),
                entrypoint: first.active.entrypoint.clone(),
                settings: first.settings.clone(),
                created_at: first.created_at,
            })?;
            catalog.set_artifact(id, &artifact, first.active.artifact_bytes)?;
            catalog.activate(id)?;
        }
        Ok(())
    }

    fn restart(&self, site: &Site, effort: &Effort) -> anyhow::Result<Vec<f64>> {
        let begun = Instant::now();
        let daemon = Daemon::start_on(site, &self.name, &self.data, Options::default())?;
        let restart = begun.elapsed();
        thread::sleep(SETTLE);
        let idle = f64::from(resident_kib(daemon.endpoint.server.id())?);
        let function = &self.functions[self.functions.len() / 2];
        let cold = ask(&daemon.target(function)?, &[])?.first_byte;
        let (target, request) = daemon.call(function)?;
        let plan = Plan {
            address: target.address,
            requests: vec![request],
            connections: 1,
            duration: effort.warm_up,
            pace: Pace::Closed,
            core: None,
        };
        load::run(&plan)?;
        let outcome = load::run(&Plan { duration: effort.round, ..plan })?;
        let summary = outcome.latencies.summary();
        Ok(vec![
            restart.as_secs_f64() * 1e3,
            idle,
            cold.as_secs_f64() * 1e3,
            summary.p50_us,
            summary.p99_us,
            outcome.failures.total().into(),
        ])
    }
}
