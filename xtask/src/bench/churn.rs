//! How many sandboxes are created, called and destroyed in a second.

use std::{thread, time::Duration};

use anyhow::anyhow;
use tokio::time::Instant;

use super::{
    Effort,
    language::Language,
    report::{Column, Comparison, FAILED, Operation, Question},
    rounds::{Contender, interleave},
    sandboxes::Sandbox,
    servers::{Endpoint, HearthOptions, Site},
};
use crate::{
    latency::Latencies,
    load::{self, Failures, Outcome, Plan},
    schedule::Pace,
};

/// How many clients call, each waiting for its reply before it calls again.
const CLIENTS: [u16; 2] = [4, 8];
const SPARES: [u16; 2] = [0, 8];
const BUBBLEWRAP: &str = "bwrap, empty program";

const COLUMNS: &[Column] = &[
    Column { key: "per_second", heading: "sandboxes/s", decimals: 0 },
    Column { key: "p50_ms", heading: "p50 ms", decimals: 2 },
    Column { key: "p99_ms", heading: "p99 ms", decimals: 2 },
    FAILED,
];

/// Answers the questions about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let bundle = site.stage.directory().join(format!("churn-bundle-{}", language.name));
    let runc = Sandbox::runc(&bundle, language.empty_program);
    let bubblewrap = Sandbox::bubblewrap();
    let servers = SPARES.map(|spares| {
        let options =
            HearthOptions { is_fresh: true, spares: Some(spares), ..HearthOptions::default() };
        let name = format!("churn-{}-{spares}", language.name);
        (format!("hearth, {spares} spares"), site.hearth(language, &name, options))
    });
    for clients in CLIENTS {
        let mut contenders: Vec<_> = servers
            .iter()
            .map(|(label, server)| hearth(label, server, clients, effort.round))
            .collect();
        for (label, kind) in [("runc run, empty program", &runc), (BUBBLEWRAP, &bubblewrap)] {
            contenders.push(match kind {
                Ok(kind) => Contender::new(label, move || {
                    figures(&churn(kind, language.empty_program, clients, effort.round)?)
                }),
                Err(reason) => Contender::skipped(label, reason),
            });
        }
        answer(Question {
            name: format!("churn-{}-c{clients}", language.name),
            title: format!("Sandboxes a second, {}, {clients} clients", language.title),
            columns: COLUMNS,
            comparisons: vec![Comparison {
                key: "per_second",
                operation: Operation::Ratio,
                to: BUBBLEWRAP,
            }],
            rows: interleave(effort.rounds, contenders),
        });
    }
    Ok(())
}

fn hearth<'a>(
    label: &str,
    server: &'a anyhow::Result<Endpoint>,
    clients: u16,
    duration: Duration,
) -> Contender<'a> {
    match server {
        Ok(endpoint) => Contender::new(label, move || {
            let (target, request) = endpoint.request("/", &[])?;
            figures(&load::run(&Plan {
                address: target.address,
                requests: vec![request],
                connections: usize::from(clients),
                duration,
                pace: Pace::Closed,
                core: None,
            })?)
        }),
        Err(reason) => Contender::skipped(label, format!("{reason:#}")),
    }
}

/// Runs the same program over and over in so many threads, at least once in each.
fn churn(
    sandbox: &Sandbox,
    arguments: &[&str],
    clients: u16,
    duration: Duration,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let client = || {
        let mut latencies = Latencies::new();
        loop {
            latencies.record(sandbox.run(arguments)?);
            if start.elapsed() >= duration {
                return anyhow::Ok(latencies);
            }
        }
    };
    let latencies = thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_fold(Latencies::new(), |mut all, client| {
            all.add(&client.join().map_err(|_| anyhow!("a client panicked"))??);
            anyhow::Ok(all)
        })
    })?;
    Ok(Outcome { latencies, failures: Failures::default(), elapsed: start.elapsed() })
}

fn figures(outcome: &Outcome) -> anyhow::Result<Vec<f64>> {
    let summary = outcome.latencies.summary();
    let failed = outcome.failures.total().into();
    Ok(vec![outcome.per_second(), summary.p50_us / 1e3, summary.p99_us / 1e3, failed])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_contributes_and_a_failure_is_passed_on() {
        let outcome = churn(&Sandbox::Bare, &["true"], 3, Duration::ZERO).expect("all succeed");
        assert_eq!(outcome.latencies.count(), 3);
        assert!(churn(&Sandbox::Bare, &["false"], 1, Duration::from_secs(60)).is_err());
    }
}
