//! The first call of a function that nobody called before: the time to the reply's first byte.
//!
//! Hearth gets a new instance for every call. What it is held against starts an empty program and
//! waits for its end, with the same isolation or with none; nothing of that serves a call.

use std::{iter, thread, time::Duration};

use super::{
    Effort,
    language::Language,
    report::{Column, Comparison, Operation, Question, Row, State},
    rounds::{Contender, interleave, quantile},
    sandboxes::Sandbox,
    servers::{HearthOptions, Site},
};

/// More than are used before the next one is ready.
const SPARES: u16 = 4;
/// Lets a used spare be replaced, and whatever ran before be cleaned up, outside of the figures.
const PAUSE: Duration = Duration::from_millis(100);
/// The label of the interpreter without a sandbox.
const BARE: &str = "interpreter alone";

const COLUMNS: &[Column] = &[
    Column { key: "samples", heading: "n", decimals: 0 },
    Column { key: "p50_ms", heading: "p50 ms", decimals: 2 },
    Column { key: "p90_ms", heading: "p90 ms", decimals: 2 },
    Column { key: "p99_ms", heading: "p99 ms", decimals: 2 },
    Column { key: "min_ms", heading: "min ms", decimals: 2 },
    Column { key: "max_ms", heading: "max ms", decimals: 2 },
];

/// Answers the question about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let bundle = site.stage.directory().join(format!("bundle-{}", language.name));
    let program = language.empty_program;
    let contenders = vec![
        hearth(site, language, "hearth, spares waiting", SPARES),
        hearth(site, language, "hearth, no spares", 0),
        sandbox("runc run", Sandbox::runc(&bundle, program), program),
        sandbox("bwrap", Sandbox::bubblewrap(), program),
        sandbox(BARE, Ok(Sandbox::Bare), program),
        sandbox("bwrap true", Sandbox::bubblewrap(), &["/usr/bin/true"]),
    ];
    let samples = interleave(effort.samples, contenders);
    answer(Question {
        name: format!("first-byte-{}", language.name),
        title: format!(
            "A fresh instance, {}: call to first byte, or start to exit",
            language.title
        ),
        columns: COLUMNS,
        comparisons: vec![Comparison { key: "p50_ms", operation: Operation::Ratio, to: BARE }],
        rows: samples.into_iter().map(summarize).collect(),
    });
    Ok(())
}

fn hearth<'a>(site: &Site, language: &Language, label: &'static str, spares: u16) -> Contender<'a> {
    let options =
        HearthOptions { is_fresh: true, spares: Some(spares), ..HearthOptions::default() };
    match site.hearth(language, &format!("first-byte-{}-{spares}", language.name), options) {
        Ok(endpoint) => Contender::new(label, move || {
            thread::sleep(PAUSE);
            Ok(vec![milliseconds(endpoint.first_byte()?)])
        }),
        Err(reason) => Contender::skipped(label, format!("{reason:#}")),
    }
}

fn sandbox<'a>(
    label: &'static str,
    sandbox: anyhow::Result<Sandbox>,
    arguments: &'static [&'static str],
) -> Contender<'a> {
    match sandbox {
        Ok(sandbox) => Contender::new(label, move || {
            thread::sleep(PAUSE);
            Ok(vec![milliseconds(sandbox.run(arguments)?)])
        }),
        Err(reason) => Contender::skipped(label, format!("{reason:#}")),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Turns rounds of one sample each into one round of quantiles.
fn summarize(row: Row) -> Row {
    let State::Measured(rounds) = row.state else { return row };
    let mut sorted: Vec<f64> = rounds.into_iter().flatten().collect();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred samples")]
    let count = sorted.len() as f64;
    let quantiles = [0.5, 0.9, 0.99, 0.0, 1.0].map(|at| quantile(&sorted, at));
    let figures = iter::once(count).chain(quantiles).collect();
    Row { label: row.label, state: State::Measured(vec![figures]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_quantiles_in_the_order_of_the_columns() {
        let rounds = (1..=100).rev().map(|sample| vec![f64::from(sample)]).collect();
        let row = summarize(Row { label: "a".to_owned(), state: State::Measured(rounds) });
        assert_eq!(row.state, State::Measured(vec![vec![100.0, 50.0, 90.0, 99.0, 1.0, 100.0]]));

        let skipped = Row { label: "b".to_owned(), state: State::Skipped("absent".to_owned()) };
        assert_eq!(summarize(skipped).state, State::Skipped("absent".to_owned()));
    }
}
