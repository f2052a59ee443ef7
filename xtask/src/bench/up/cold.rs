//! The first call of a function that has no instance: the time to the reply's first byte, and where
//! it went.

use std::{thread, time::Duration};

use anyhow::{Context, ensure};
use serde_json::json;

use super::daemon::{Daemon, Options, Source, names};
use crate::bench::{
    Effort,
    language::Language,
    report::{Column, Question, Row, State},
    rounds::{Contender, interleave, median, quantile},
    servers::{Site, ask},
};

/// So many that each has lost its instance again when its turn comes.
const FUNCTIONS: usize = 30;
/// Between two calls: a spare that was taken is replaced outside of the figures.
const PAUSE: Duration = Duration::from_millis(100);
const PHASES: [&str; 5] = ["wait", "spare", "attach", "bind", "call"];

const COLUMNS: &[Column] = &[
    Column { key: "samples", heading: "n", decimals: 0 },
    Column { key: "p50_ms", heading: "p50 ms", decimals: 2 },
    Column { key: "p90_ms", heading: "p90 ms", decimals: 2 },
    Column { key: "p99_ms", heading: "p99 ms", decimals: 2 },
    Column { key: "max_ms", heading: "max ms", decimals: 2 },
    Column { key: "wait_ms", heading: "wait", decimals: 2 },
    Column { key: "spare_ms", heading: "spare", decimals: 2 },
    Column { key: "attach_ms", heading: "attach", decimals: 2 },
    Column { key: "bind_ms", heading: "bind", decimals: 2 },
    Column { key: "call_ms", heading: "call", decimals: 2 },
    Column { key: "from_spare_percent", heading: "from spare %", decimals: 0 },
];

/// Answers the question about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let lanes = [("a spare waiting", None), ("spares spent", Some(0))].map(|(label, spares)| {
        let name = format!("up-cold-{}-{}", language.name, spares.map_or("some", |_| "none"));
        (label, Lane::start(site, language, &name, spares))
    });
    let before = lanes.each_ref().map(|(_, lane)| lane.as_ref().ok().map(Lane::started));
    let contenders = lanes.iter().map(|(label, lane)| match lane {
        Ok(lane) => {
            let mut turn = 0;
            Contender::new(*label, move || {
                thread::sleep(PAUSE);
                turn += 1;
                lane.call(turn)
            })
        }
        Err(reason) => Contender::skipped(*label, format!("{reason:#}")),
    });
    let rows = interleave(effort.samples * 2, contenders.collect());
    let mut summaries = Vec::new();
    for ((row, (_, lane)), before) in rows.into_iter().zip(&lanes).zip(before) {
        let shares = lane.as_ref().ok().zip(before).map(|(lane, before)| {
            let started = lane.started()?.since(before?);
            anyhow::Ok(100.0 * started.from_spare / started.total())
        });
        summaries.push(summarize(row, shares.transpose()?.unwrap_or(f64::NAN)));
    }
    answer(Question {
        name: format!("up-cold-{}", language.name),
        title: format!(
            "A function without an instance, {}: call to first byte, and its phases' medians in ms",
            language.title
        ),
        columns: COLUMNS,
        comparisons: Vec::new(),
        rows: summaries,
    });
    Ok(())
}

struct Lane {
    daemon: Daemon,
    functions: Vec<String>,
}

impl Lane {
    fn start(
        site: &Site,
        language: &Language,
        name: &str,
        max_spares: Option<u32>,
    ) -> anyhow::Result<Self> {
        let daemon = Daemon::start(site, name, Options { max_spares, ..Options::default() })?;
        let source = Source::of(site, language)?;
        let functions = names(FUNCTIONS);
        daemon.deploy_all(&functions, &source, &json!({ "idle": "500ms" }))?;
        daemon.until_idle()?;
        if max_spares.is_none() {
            daemon.until_spare()?;
        }
        Ok(Self { daemon, functions })
    }

    fn started(&self) -> anyhow::Result<super::daemon::Started> {
        self.daemon.started()
    }

    /// One call of the function whose turn it is: milliseconds, in all and by phase.
    fn call(&self, turn: usize) -> anyhow::Result<Vec<f64>> {
        let function = &self.functions[turn % self.functions.len()];
        let timed = ["x-hearth-timing: 1".to_owned()];
        let answer = ask(&self.daemon.target(function)?, &timed)?;
        let timing = answer.reply.header(&answer.received, "server-timing");
        let phases = phases(timing.context("the reply says nothing about its time")?)?;
        let [_, spare, attach, bind, _] = phases;
        ensure!(spare + attach + bind > 0.0, "`{function}` had an instance");
        let mut figures = vec![answer.first_byte.as_secs_f64() * 1e3];
        figures.extend(phases);
        Ok(figures)
    }
}

/// The milliseconds in a `Server-Timing`, in the order of [`PHASES`].
fn phases(timing: &str) -> anyhow::Result<[f64; PHASES.len()]> {
    let mut found = [0.0; PHASES.len()];
    for (name, millis) in PHASES.iter().zip(&mut found) {
        let entries = timing.split(',').map(str::trim);
        let text = entries
            .filter_map(|entry| entry.split_once(";dur="))
            .find_map(|(known, value)| (known == *name).then_some(value));
        let text = text.with_context(|| format!("`{timing}` has no phase `{name}`"))?;
        *millis = text.parse().with_context(|| format!("`{text}` is not a time"))?;
    }
    Ok(found)
}

/// Turns rounds of one sample each into one round of quantiles and medians.
fn summarize(row: Row, from_spare_percent: f64) -> Row {
    let State::Measured(rounds) = row.state else { return row };
    let column = |index: usize| rounds.iter().map(move |round| round[index]);
    let mut sorted: Vec<f64> = column(0).collect();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred samples")]
    let mut figures = vec![sorted.len() as f64];
    figures.extend([0.5, 0.9, 0.99, 1.0].map(|at| quantile(&sorted, at)));
    let medians = (1..=PHASES.len()).map(|index| median(column(index)).unwrap_or(f64::NAN));
    figures.extend(medians);
    figures.push(from_spare_percent);
    Row { label: row.label, state: State::Measured(vec![figures]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_by_name() {
        let timing = "wait;dur=0.012, spare;dur=1.000, attach;dur=0.500, bind;dur=15.000, \
                      call;dur=1.002";
        assert_eq!(phases(timing).expect("all there"), [0.012, 1.0, 0.5, 15.0, 1.002]);
        assert!(phases("wait;dur=1").is_err());
    }

    #[test]
    fn samples_become_one_line() {
        let rounds = (1..=100).map(|sample| {
            let mut figures = vec![f64::from(sample)];
            figures.extend([1.0, 2.0, 3.0, 4.0, 5.0]);
            figures
        });
        let state = State::Measured(rounds.collect());
        let row = summarize(Row { label: "a".to_owned(), state }, 75.0);
        let expected = vec![100.0, 50.0, 90.0, 99.0, 100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 75.0];
        assert_eq!(expected.len(), COLUMNS.len());
        assert_eq!(row.state, State::Measured(vec![expected]));
    }
}
